"""Editing methods. A new method is one file, one row here, one yaml, and one line in the promise
tests.
"""

from mmedit.editors.base import Editor
from mmedit.methods.ft import FT
from mmedit.methods.ike import IKE
from mmedit.methods.ke import KE
from mmedit.methods.mend import MEND
from mmedit.methods.serac import SERAC

EDITORS: dict[str, type[Editor]] = {editor.method: editor for editor in (FT, IKE, KE, MEND, SERAC)}
