"""Two ranks over gloo do what one does on their joint batch, and their states are exchangeable."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

# Run by every rank: trains from a saved state, saves its own, and proves its state goes round.
WORKER = """
import json, sys
import torch
from nanochat.builtin.attention import Sdpa
from nanochat.builtin.loss import Torch
from nanochat.builtin.runtimes import CpuRuntime
from nanochat.model.config import GPTConfig
from nanochat.model.gpt import GPT
from nanochat.optim import OptimizerSettings, Schedule, build_optimizer

folder, begin, label, start, steps = sys.argv[1], *json.loads(sys.argv[2])
torch.set_num_threads(1)
runtime = CpuRuntime.start(None)
attention, loss = Sdpa(), Torch()
attention.load()
loss.load()
# 3 layers, so groups of 3 matrices (feed-forward) and of 2 (the value gates of layers 0 and 2).
config = GPTConfig(sequence_len=16, vocab_size=60, n_layer=3, n_head=4, n_kv_head=2, n_embd=32)
with torch.device("meta"):
    model = GPT(config, attention=attention, loss=loss)
torch.manual_seed(0)
model.initialize("cpu")
# At initialisation the residual scalars have no gradient but rounding, which AdamW would turn into
# whole steps, different ones for each number of ranks.
with torch.no_grad():
    for name, parameter in model.named_parameters():
        if name.startswith("blocks.") or name == "output.weight":
            parameter.normal_(std=parameter.size(1) ** -0.5)
    model.smear_scale.fill_(0.5)
optimizer = build_optimizer(model, OptimizerSettings(weight_decay=0.1), runtime, compile=False)
sizes = sorted(len(g["blocks"]) for g in optimizer.param_groups if g["kind"] == "muon")
if begin:
    weights, state = torch.load(f"{folder}/{begin}.pt")
    model.load_state_dict(weights)
    optimizer.load_state_dict(state)
schedule = Schedule(20, warmup_steps=2, weight_decay=0.1)
tokens = torch.randint(0, 60, (20, 6, 16), generator=torch.Generator().manual_seed(1))
share = 6 // runtime.world_size
losses = []
for step in range(start, start + steps):
    rows = tokens[step, runtime.rank * share : (runtime.rank + 1) * share]
    schedule.apply(optimizer, step)
    value = model(rows, rows.roll(-1, 1))
    value.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    losses.append(runtime.all_reduce_mean(value.detach()).item())
    if step == 5:
        middle = (model.state_dict(), optimizer.state_dict())
        if runtime.rank == 0:
            torch.save(middle, f"{folder}/{label}-6.pt")
state = optimizer.state_dict()
optimizer.load_state_dict(state)
again = optimizer.state_dict()
assert list(again) == list(state)
assert all(torch.equal(again[key], state[key]) for key in state)
mine = [p.double().sum().item() for p in model.parameters()]
everyone = runtime.all_gather_object(mine)
assert all(other == mine for other in everyone), "the ranks' weights have come apart"
states = runtime.all_gather_object({k: v.double().sum().item() for k, v in state.items()})
assert all(other == states[0] for other in states), "every rank gets the whole state"
held = sum(v.numel() for s in optimizer.state.values() for v in s.values()) + sum(
    v.numel() for g in optimizer.param_groups for v in g.get("state", {}).values()
)
whole = sum(v.numel() for v in state.values()) - 1
shares = runtime.all_gather_object(held / whole)
if runtime.rank == 0:
    torch.save((model.state_dict(), state), f"{folder}/{label}.pt")
    print(json.dumps({"losses": losses, "sizes": sizes, "shares": shares}))
runtime.close()
"""


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("ranks")


@pytest.fixture(scope="module")
def run(folder):
    """Train `steps` steps on some ranks; returns what rank 0 says, its weights and its state."""

    def start(name, ranks, *, begin=None, start=0, steps=9):
        arguments = [str(folder), json.dumps([begin, name, start, steps])]
        environment = {
            **{k: v for k, v in os.environ.items() if k not in ("RANK", "WORLD_SIZE")},
            "OMP_NUM_THREADS": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }
        processes = []
        for rank in range(ranks):
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(ranks)}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", WORKER, *arguments],
                    env={**environment, **own} if ranks > 1 else environment,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            ends = [process.communicate(timeout=120) for process in processes]
        finally:
            for process in processes:
                process.kill()
        for process, (_, error) in zip(processes, ends, strict=True):
            assert process.returncode == 0, error
        weights, state = torch.load(folder / f"{name}.pt")
        return json.loads(ends[0][0].splitlines()[-1]), weights, state

    return start


@pytest.fixture(scope="module")
def one(run):
    return run("one", 1)


@pytest.fixture(scope="module")
def two(run):
    return run("two", 2)


def assert_close(found, expected):
    assert list(found) == list(expected)
    for key, value in expected.items():
        # Of a tensor, not of an entry; and orthogonalisation magnifies the rounding of the smallest
        # singular values a thousandfold.
        scale = max(value.double().norm().item(), 1e-3)
        error = (found[key].double() - value.double()).norm().item() / scale
        assert error < 1e-4, f"{key}: {error:.1e}"


def test_two_ranks_train_as_one_on_the_joint_batch(one, two):
    assert two[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-5)
    assert_close(two[1], one[1])
    assert int(two[2]["steps"]) == 9
    assert_close(two[2], one[2])


def test_ranks_share_the_state_out(one, two):
    assert one[0]["shares"] == [1.0]
    # Groups of an odd number of matrices leave the first rank a little more than half.
    assert max(two[0]["shares"]) < 0.65
    assert sum(two[0]["shares"]) == pytest.approx(1.0, abs=0.01)
    assert any(size % 2 for size in two[0]["sizes"])


@pytest.mark.parametrize(("saved_by", "ranks"), [("two", 1), ("one", 2)])
def test_a_state_moves_between_numbers_of_ranks(run, one, two, saved_by, ranks):
    begin = f"{saved_by}-6"
    resumed, weights, state = run(f"from-{saved_by}", ranks, begin=begin, start=6, steps=3)
    assert resumed["losses"] == pytest.approx(one[0]["losses"][6:], rel=1e-5)
    assert_close(weights, one[1])
    assert_close(state, one[2])


@pytest.fixture(scope="module")
def three(run):
    return run("three", 3)


def test_groups_with_fewer_matrices_than_ranks(one, three):
    """One of three ranks has no matrix of a group of two, and idles in step.

    Nor do the 64 rows of a table divide by three, so every rank updates all of them.
    """
    assert min(three[0]["sizes"]) == 2
    assert three[0]["losses"] == pytest.approx(one[0]["losses"], rel=1e-5)
    assert_close(three[1], one[1])
    assert_close(three[2], one[2])
