"""Optional packages: the base installation works without them, and errors name the command that installs them."""

from __future__ import annotations

import importlib
import os
import re
import sys
import tomllib

import base_install
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from caption_jax.errors import user_message
from input_pipeline import extras
from input_pipeline.errors import MissingPackageError
from input_pipeline.extras import EXTRAS, TRAINING, optional_packages, require, select_bucket_backend

DECLARED = tomllib.loads((base_install.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
# Packages that only other packages import.
INDIRECT_PACKAGES = {"jax-cuda12-pjrt", "importlib-resources", "tensorflow-cpu", "onnxruntime"}
DEVELOPER_EXTRAS = {"test", "bench", "docs"}
EXTRAS_WITHOUT_MODULES = {"cuda"}  # JAX discovers its plug-ins
# Modules that import an optional package at the top level.
MODULES_WITH_OPTIONAL_IMPORTS = {
    "caption_jax.evaluation.report.html.page",
    "caption_jax.evaluation.report.plots",
    "caption_jax.evaluation.report.summary_cards",
    *(f"caption_jax.serving.{name}" for name in ("http_app", "http_errors", "http_server", "request_middleware")),
    *(
        f"caption_jax.serving.{name}"
        for name in ("api_description", "disconnection", "search_api", "search_description")
    ),
    *(f"caption_jax.serving.{name}" for name in ("search_request", "uploads", "web_page")),
    "input_pipeline.sources.shapes_dataset.builder",
}
MODULES = [(extra, module) for extra, modules in EXTRAS.items() for module in modules]


def install_command(extra: str) -> str:
    """Returns the end of the error message for missing packages of an extra."""
    return f"pip install 'caption-jax[{extra}]', or '.[{extra}]' in a checkout"


def test_modules_without_optional_imports_can_be_imported_in_the_base_installation():
    errors = {name: error for name, error in base_install.collect_errors()["modules"].items() if error}
    assert set(errors) == MODULES_WITH_OPTIONAL_IMPORTS, errors
    assert all(error.startswith("MissingPackageError: ") for error in errors.values())


def test_errors_for_missing_packages_name_the_install_command():
    uses = base_install.collect_errors()["calls"]
    for use, error in uses.items():
        module = use.split()[0]
        (extra,) = (extra for extra, modules in EXTRAS.items() if module in modules)
        assert module in error and error.endswith(f": {install_command(extra)}"), f"{use}: {error}"
        assert "\n" not in error
    used_modules = {use.split()[0] for use in uses}
    # Never reached, because the import of TensorFlow fails first.
    assert {module for _, module in MODULES} - used_modules == {"clu", "tensorboard"}


@pytest.mark.parametrize(("extra", "module"), MODULES)
def test_the_error_for_a_missing_package_is_one_line_with_the_install_command(extra, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # simulates a missing package
    with pytest.raises(MissingPackageError) as import_error, optional_packages("this test"):
        importlib.import_module(module)
    with pytest.raises(MissingPackageError) as require_error:
        require("this test", module)
    expected = f"this test needs packages that are not installed ({module}): {install_command(extra)}"
    assert user_message(import_error.value) == user_message(require_error.value) == expected


def test_packages_of_several_extras_are_installed_by_one_command():
    assert extras.describe_missing("h5py", "grain", "clu").endswith(install_command("keras-weights,train"))


@pytest.mark.parametrize("module", ["jinja2.no_such_module", "no_such_module"])
def test_other_import_errors_are_not_converted(module):
    with pytest.raises(ModuleNotFoundError) as error, optional_packages("this test"):
        importlib.import_module(module)
    assert not isinstance(error.value, MissingPackageError)


def test_extras_match_pyproject():
    assert set(DECLARED) == {*EXTRAS, *DEVELOPER_EXTRAS, *EXTRAS_WITHOUT_MODULES}
    for extra, modules in EXTRAS.items():
        requirements = [Requirement(text) for text in DECLARED[extra]]
        names = {canonicalize_name(requirement.name) for requirement in requirements}
        if extra == "tpu":
            assert [(requirement.name, requirement.extras) for requirement in requirements] == [("jax", {"tpu"})]
        else:
            assert {canonicalize_name(module) for module in modules} == names - INDIRECT_PACKAGES
    assert set(TRAINING) <= set(EXTRAS["train"])


def test_developer_extras_include_the_extras_they_require():
    all_but_bench = {"docs", "gcs", "heic", "hub", "java", "keras-weights", "onnx", "parquet", "ray"}
    all_but_bench |= {"s3", "serve", "train"}
    for extra, expected in (("test", all_but_bench), ("bench", {"java", "serve", "train"})):
        requirements = map(Requirement, DECLARED[extra])
        (self_requirement,) = (requirement for requirement in requirements if requirement.name == "caption-jax")
        assert self_requirement.extras == expected


@pytest.mark.parametrize(
    ("installed_packages", "uses_tensorflow"),
    [({"gcsfs"}, False), ({"gcsfs", "tensorflow"}, False), ({"tensorflow"}, True)],
)
def test_buckets_are_read_without_tensorflow_if_possible(installed_packages, uses_tensorflow, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", installed_packages.__contains__)
    monkeypatch.setenv("EPATH_USE_TF", "")
    monkeypatch.delenv("EPATH_USE_TF")
    select_bucket_backend("/local/run")
    select_bucket_backend("gs://bucket/run")
    assert (os.environ.get("EPATH_USE_TF") is None) == uses_tensorflow


def test_the_error_for_an_unsupported_bucket_names_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    with pytest.raises(MissingPackageError, match=rf"^s3://bucket/run needs .*: {re.escape(install_command('s3'))}$"):
        select_bucket_backend("s3://bucket/run")
