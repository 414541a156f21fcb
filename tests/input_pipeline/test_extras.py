"""Optional packages: the base installation works without them, and errors name the command that installs them."""

from __future__ import annotations

import importlib
import os
import sys
import tomllib

import base_install
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from caption_jax.errors import user_message
from input_pipeline import extras
from input_pipeline.errors import MissingPackageError
from input_pipeline.extras import EXTRAS, TRAINING, optional_packages, prepare_bucket, require

DECLARED = tomllib.loads((base_install.ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
NOT_IMPORTED_BY_US = {"array-record", "importlib-resources", "tensorflow-cpu"}
FOR_DEVELOPERS = {"test", "bench"}
WITHOUT_A_MODULE = {"cuda"}  # JAX discovers its plug-ins
# Modules that import an optional package at the top level.
NEED_AN_EXTRA = {
    "caption_jax.evaluation.report.html.page",
    "caption_jax.evaluation.report.plots",
    "input_pipeline.sources.shapes_dataset.builder",
}
MODULES = [(extra, module) for extra, modules in EXTRAS.items() for module in modules]


def test_every_other_module_is_imported_in_the_base_installation():
    errors = {name: error for name, error in base_install.outcomes()["modules"].items() if error}
    assert set(errors) == NEED_AN_EXTRA, errors
    assert all(error.startswith("MissingPackageError: ") for error in errors.values())


def test_uses_of_missing_packages_name_the_command():
    uses = base_install.outcomes()["uses"]
    for use, error in uses.items():
        module = use.split()[0]
        (extra,) = (extra for extra, modules in EXTRAS.items() if module in modules)
        assert module in error and error.endswith(f": pip install 'caption-jax[{extra}]'"), f"{use}: {error}"
        assert "\n" not in error
    used = {use.split()[0] for use in uses}
    assert {module for _, module in MODULES} - used == {"clu", "tensorboard"}  # imported after TensorFlow


@pytest.mark.parametrize(("extra", "module"), MODULES)
def test_the_error_for_a_missing_package_is_one_line_with_the_command(extra, module, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)  # simulates a missing package
    with pytest.raises(MissingPackageError) as imported, optional_packages("this test"):
        importlib.import_module(module)
    with pytest.raises(MissingPackageError) as required:
        require("this test", module)
    line = f"this test needs packages that are not installed ({module}): pip install 'caption-jax[{extra}]'"
    assert user_message(imported.value) == user_message(required.value) == line


def test_packages_of_several_extras_give_one_command():
    assert extras.describe_missing("h5py", "grain", "clu").endswith("pip install 'caption-jax[keras-weights,train]'")


def test_a_damaged_installation_keeps_its_error():
    with pytest.raises(ModuleNotFoundError) as error, optional_packages("this test"):
        importlib.import_module("jinja2.nothing_of_that_name")
    assert not isinstance(error.value, MissingPackageError)
    with pytest.raises(ModuleNotFoundError) as error, optional_packages("this test"):
        importlib.import_module("nothing_of_that_name")
    assert not isinstance(error.value, MissingPackageError)


def test_the_table_and_pyproject_agree():
    assert set(DECLARED) == {*EXTRAS, *FOR_DEVELOPERS, *WITHOUT_A_MODULE}
    for extra, modules in EXTRAS.items():
        requirements = [Requirement(text) for text in DECLARED[extra]]
        names = {canonicalize_name(requirement.name) for requirement in requirements}
        if extra == "tpu":
            assert [(requirement.name, requirement.extras) for requirement in requirements] == [("jax", {"tpu"})]
        else:
            assert {canonicalize_name(module) for module in modules} == names - NOT_IMPORTED_BY_US
    assert set(TRAINING) <= set(EXTRAS["train"])


def test_tests_and_benchmarks_include_the_extras_they_need():
    for extra, needed in (("test", {"hub", "java", "keras-weights", "train"}), ("bench", {"java", "train"})):
        (requirement_of_extras,) = (
            requirement for text in DECLARED[extra] if (requirement := Requirement(text)).name == "caption-jax"
        )
        assert requirement_of_extras.extras == needed


@pytest.mark.parametrize(
    ("installed", "through_tensorflow"), [({"gcsfs"}, False), ({"gcsfs", "tensorflow"}, False), ({"tensorflow"}, True)]
)
def test_a_bucket_is_read_without_tensorflow_if_possible(installed, through_tensorflow, monkeypatch):
    monkeypatch.setattr(extras, "is_installed", installed.__contains__)
    monkeypatch.setenv("EPATH_USE_TF", "")
    monkeypatch.delenv("EPATH_USE_TF")
    prepare_bucket("/local/run")
    prepare_bucket("gs://bucket/run")
    assert (os.environ.get("EPATH_USE_TF") is None) == through_tensorflow


def test_an_unreadable_bucket_names_its_extra(monkeypatch):
    monkeypatch.setattr(extras, "is_installed", lambda module: False)
    with pytest.raises(MissingPackageError, match=r"^s3://bucket/run needs .*pip install 'caption-jax\[s3\]'$"):
        prepare_bucket("s3://bucket/run")
