"""The documentation site builds without warnings, documents the public names, and loads nothing from other hosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from small_run import ROOT

pytest.importorskip("mkdocs", reason="requires the docs extra")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    process = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stdout + process.stderr
    return folder


def list_navigation(node: object) -> list[str]:
    """Returns the pages in the navigation of mkdocs.yml."""
    if isinstance(node, str):
        return [node]
    children = node.values() if isinstance(node, dict) else node
    return [page for child in children for page in list_navigation(child)]


def test_every_page_is_in_the_navigation():
    class Loader(yaml.SafeLoader):
        """Ignores tags that only mkdocs understands."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: None)
    pages = list_navigation(yaml.load((ROOT / "mkdocs.yml").read_text(), Loader)["nav"])
    documents = {path.relative_to(ROOT / "docs").as_posix() for path in (ROOT / "docs").rglob("*.md")}
    assert sorted(pages) == sorted(documents)


def test_the_api_pages_contain_signatures_and_descriptions(site):
    text = (site / "api" / "index.html").read_text()
    for name in ("caption_jax.inference.captioner.Captioner.caption", "caption_jax.metrics.scores.score"):
        assert f'id="{name}"' in text
    assert "ImageCaptioningModel" in text and "train_and_evaluate" in text


def test_pages_load_nothing_from_other_hosts(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 15
    for page in pages:
        text = page.read_text()
        sources = re.findall(r"<(?:script|img|iframe)[^>]* src=\"([^\"]+)\"", text)
        sources += re.findall(r"<link[^>]* rel=\"(?:stylesheet|preload|icon)\"[^>]* href=\"([^\"]+)\"", text)
        assert not [source for source in sources if "://" in source], page
