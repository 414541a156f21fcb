"""Hashes of the source files of an extension, which invalidate cached programs."""

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
    "custom/backbone.py": """
import dataclasses
import json
from typing import ClassVar

@dataclasses.dataclass(frozen=True)
class Custom:
    stage_names: ClassVar = ()

    def build(self, settings, **options):
        from custom.layers.network import Network
        return Network()
""",
    "custom/layers/network.py": "from ..widths import WIDTH\nfrom . import blocks\nimport flax\n",
    "custom/layers/blocks.py": "import caption_jax.models\n",
    "custom/widths.py": "WIDTH = 8\n",
    "custom/unused.py": "",
    "single.py": "import dataclasses\nimport helper\n\n@dataclasses.dataclass(frozen=True)\nclass Single:\n    pass\n",
    "helper.py": "RATE = 1\n",
    "unused.py": "",
}


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A folder with a package without `__init__.py`, and a module that imports another module."""
    for name, source in FILES.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("custom", "single", "helper")]:
        del sys.modules[name]


def append_comment(path) -> None:
    path.write_text(path.read_text() + "# edited\n")


@pytest.mark.parametrize(
    ("name", "path", "is_used"),
    [
        ("custom.backbone:Custom", "custom/backbone.py", True),
        ("custom.backbone:Custom", "custom/layers/network.py", True),
        ("custom.backbone:Custom", "custom/layers/blocks.py", True),
        ("custom.backbone:Custom", "custom/widths.py", True),
        ("custom.backbone:Custom", "custom/unused.py", False),
        ("single:Single", "single.py", True),
        ("single:Single", "helper.py", True),
        ("single:Single", "unused.py", False),
    ],
)
def test_only_edits_to_imported_modules_change_the_hash(project, name, path, is_used):
    module, _, attribute = name.partition(":")
    cls = getattr(importlib.import_module(module), attribute)
    before = source_hash(cls)
    assert source_hash(cls) == before != ""
    append_comment(project / path)
    assert (source_hash(cls) != before) == is_used


def test_new_package_files_change_the_hash(project):
    cls = importlib.import_module("custom.backbone").Custom
    before = source_hash(cls)
    (project / "custom" / "layers" / "__init__.py").write_text("")
    assert source_hash(cls) != before


def test_classes_of_this_project_have_no_source_hash():
    assert source_hash(ViT) == ""


def test_cached_programs_depend_on_the_source_of_the_backbone(project):
    """The programs for training, the feature cache and captioning share this part of the key."""
    description = small_description()
    model = build_spec(ModelSpec, {"encoder": {"name": "custom.backbone:Custom"}})
    with_custom_backbone = dataclasses.replace(description, spec=dataclasses.replace(description.spec, model=model))
    before = with_custom_backbone.cache_key()
    append_comment(project / "custom" / "widths.py")
    assert with_custom_backbone.cache_key() != before
    assert description.cache_key()["backbone_source"] == ""


def test_hashing_does_not_import_the_modules(project):
    code = (
        "from custom.backbone import Custom; from caption_jax.runtime.extension_sources import source_hash; "
        "source_hash(Custom); print('custom.layers.network' in sys.modules or 'flax' in sys.modules)"
    )
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(project)!r}); {code}"]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip() == "False"
