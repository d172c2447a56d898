"""A client's process does without torch's compiler, and has it as soon as somebody asks for it."""

import subprocess
import sys

import pytest

START = """
import sys
from splitfed.clients.deployment.uncompiled import leave_out_compiler

leave_out_compiler()
leave_out_compiler()
import splitfed.model.build
import torch

def loaded():
    return "torch._dynamo.eval_frame" in sys.modules

values = torch.nn.Parameter(torch.ones(3))
for kind in (torch.optim.AdamW, torch.optim.SGD):
    optimiser = kind([values], lr=0.25, weight_decay=0)
    values.sum().backward()
    optimiser.step()
    optimiser.zero_grad()
assert torch.allclose(values, torch.full((3,), 0.5)), values
assert not loaded()
"""
# Each in a fork of the process that has just trained.
ASKED = """
import os

for asked in (
    "import torch._dynamo.config as it; assert it is torch._dynamo.config is sys.modules['torch._dynamo.config']",
    "assert torch.compile(lambda x: x + 1, backend='eager')(torch.ones(2)).tolist() == [2, 2]",
):
    if (child := os.fork()) == 0:
        exec(asked)
        assert loaded() and torch._dynamo.__file__
        assert not any(type(one).__module__.startswith("splitfed") for one in sys.meta_path)
        os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7, asked
"""


@pytest.mark.slow
def test_the_compiler_is_loaded_when_it_is_asked_for():
    ended = subprocess.run([sys.executable, "-c", START + ASKED], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
