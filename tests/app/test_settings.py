"""Settings: what operators may set stands where operators read."""

from __future__ import annotations

import re
from pathlib import Path

from app.settings import Settings

_HOUSE = Path(__file__).parents[2]


def test_every_setting_is_documented() -> None:
    pages = [_HOUSE / "README.md", *(_HOUSE / "docs").glob("*.md")]
    told = set(re.findall(r"`(\w+)[`=]", "\n".join(page.read_text() for page in pages)))
    settings = {str(field.validation_alias) for field in Settings.model_fields.values()}
    assert settings - told == set()
