"""What compiles kernels where there is no GPU: the launchers that it builds can be loaded."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

SOURCE = """
#include <Python.h>
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "launcher"};
PyMODINIT_FUNC PyInit_launcher(void) {
    PyObject *module = PyModule_Create(&definition);
    PyModule_AddIntConstant(module, "answer", 42);
    return module;
}
"""


@pytest.mark.skipif(not shutil.which("gcc"), reason="needs gcc, with which Triton builds launchers")
def test_built_launcher_can_be_loaded(tmp_path: Path) -> None:
    compiling = pytest.importorskip("ralib.kernels.compiling", reason="needs the package triton")
    (tmp_path / "launcher.c").write_text(SOURCE)
    built = compiling._built("launcher", str(tmp_path / "launcher.c"), str(tmp_path), [], [], ["libm.so.6"])
    spec = importlib.util.spec_from_file_location("launcher", built)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.answer == 42
