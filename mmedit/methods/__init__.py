"""Table of the editing methods: each is one file or folder of this package, and one row here.

docs/adding-a-method.md lists all files that a new method needs.
"""

from mmedit.editors.base import Editor
from mmedit.methods.alphaedit import AlphaEdit
from mmedit.methods.balancedit import BalancEdit
from mmedit.methods.ft import FT
from mmedit.methods.grace import GRACE
from mmedit.methods.ike import IKE
from mmedit.methods.ke import KE
from mmedit.methods.liveedit import LiveEdit
from mmedit.methods.lora import LoRA
from mmedit.methods.memit import MEMIT
from mmedit.methods.mend import MEND
from mmedit.methods.more import MORE
from mmedit.methods.rome import ROME
from mmedit.methods.serac import SERAC
from mmedit.methods.tpatcher import TPatcher
from mmedit.methods.ultraedit import UltraEdit
from mmedit.methods.visedit import VisEdit
from mmedit.methods.wise import WISE

EDITORS: dict[str, type[Editor]] = {
    editor.method: editor
    for editor in (
        FT,
        LoRA,
        IKE,
        KE,
        MEND,
        SERAC,
        ROME,
        MEMIT,
        AlphaEdit,
        UltraEdit,
        MORE,
        GRACE,
        TPatcher,
        BalancEdit,
        LiveEdit,
        VisEdit,
        WISE,
    )
}
"""Methods by name."""
