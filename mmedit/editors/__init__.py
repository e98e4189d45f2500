"""Editing methods. A new method is one file, one row here, one yaml, and one line in the promise
tests.
"""

from mmedit.editors.base import Editor, EditorConfig
from mmedit.editors.ft import FT
from mmedit.editors.ike import IKE
from mmedit.editors.ke import KE
from mmedit.editors.mend import MEND
from mmedit.editors.serac import SERAC

EDITORS: dict[str, type[Editor]] = {editor.method: editor for editor in (FT, IKE, KE, MEND, SERAC)}

__all__ = ["EDITORS", "FT", "IKE", "KE", "MEND", "SERAC", "Editor", "EditorConfig"]
