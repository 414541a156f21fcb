"""The source files of an extension that a cached program depends on."""

from __future__ import annotations

import dataclasses
import importlib
import subprocess
import sys

import pytest
from small_models import small_description

from caption_jax.backbones.vit_backbone import ViT
from caption_jax.runtime.extension_sources import source_hash
from caption_jax.specs import build_spec
from caption_jax.specs.model_spec import ModelSpec

FILES = {
    "mine/backbone.py": """
import dataclasses
import json
from typing import ClassVar

@dataclasses.dataclass(frozen=True)
class Mine:
    stage_names: ClassVar = ()

    def build(self, settings, **options):
        from mine.layers.network import Network
        return Network()
""",
    "mine/layers/network.py": "from ..sizes import WIDTH\nfrom . import blocks\nimport flax\n",
    "mine/layers/blocks.py": "import caption_jax.models\n",
    "mine/sizes.py": "WIDTH = 8\n",
    "mine/unrelated.py": "",
    "alone.py": "import dataclasses\nimport beside\n\n@dataclasses.dataclass(frozen=True)\nclass Alone:\n    pass\n",
    "beside.py": "RATE = 1\n",
    "aside.py": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A package without `__init__.py`, and a module that imports another module."""
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mine", "alone", "beside")]:
        del sys.modules[name]


def edit(path) -> None:
    path.write_text(path.read_text() + "# edited\n")


@pytest.mark.parametrize(
    ("name", "edited", "changes"),
    [
        ("mine.backbone:Mine", "mine/backbone.py", True),
        ("mine.backbone:Mine", "mine/layers/network.py", True),
        ("mine.backbone:Mine", "mine/layers/blocks.py", True),
        ("mine.backbone:Mine", "mine/sizes.py", True),
        ("mine.backbone:Mine", "mine/unrelated.py", False),
        ("alone:Alone", "alone.py", True),
        ("alone:Alone", "beside.py", True),
        ("alone:Alone", "aside.py", False),
    ],
)
def test_edits_of_imported_modules_change_the_hash(project, name, edited, changes):
    module, _, attribute = name.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    before = source_hash(cls)
    assert source_hash(cls) == before != ""
    edit(project / edited)
    assert (source_hash(cls) != before) == changes


def test_new_package_files_change_the_hash(project):
    cls = importlib.import_module("mine.backbone").Mine
    before = source_hash(cls)
    (project / "mine" / "layers" / "__init__.py").write_text("")
    assert source_hash(cls) != before


def test_classes_of_this_project_have_no_source_hash():
    assert source_hash(ViT) == ""


def test_cached_programs_depend_on_the_source_of_the_backbone(project):
    """Programs of training, of the feature cache and of captioning share this key."""
    description = small_description()
    model = build_spec(ModelSpec, {"encoder": {"name": "mine.backbone:Mine"}})
    custom = dataclasses.replace(description, spec=dataclasses.replace(description.spec, model=model))
    before = custom.cache_key()
    edit(project / "mine" / "sizes.py")
    assert custom.cache_key() != before
    assert description.cache_key()["backbone_source"] == ""


def test_hashing_imports_nothing(project):
    code = (
        "import sys; from mine.backbone import Mine; from caption_jax.runtime.extension_sources import source_hash; "
        "source_hash(Mine); print('mine.layers.network' in sys.modules or 'flax' in sys.modules)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(project)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
