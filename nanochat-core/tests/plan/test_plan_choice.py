"""How a backend is chosen, and what is said about those that were not."""

import json
from dataclasses import replace

import pytest

from nanochat.backend import (
    AttentionBackend,
    AttentionProblem,
    DeviceBackend,
    DeviceProblem,
    LossBackend,
    LossProblem,
    QuantizationBackend,
    Requirement,
    Support,
    Target,
)
from nanochat.errors import NanochatError, UsageError
from nanochat.plan import choose, choose_device, examine, make_plan
from nanochat.registry import Broken, Registered, Registry

CPU = Target(kind="cpu", name="a processor", memory=2**34)
PROBLEM = LossProblem(device="cpu", tokens=1024, hidden=64, vocab=512)


def loss(name, priority=0, *, check=None, supports=None, requires=(), **attributes):
    """A loss backend that answers as told; an exception in place of an answer is raised."""

    def answering(answer):
        def method(self, asked):
            if isinstance(answer, BaseException):
                raise answer
            return answer

        return method

    body = {"name": name, "summary": "a toy", "requires": requires, **attributes}
    body["priority"] = answering(priority)
    if check is not None:
        body["check"] = answering(check)
    if supports is not None:
        body["supports"] = answering(supports)
    return type("Toy", (LossBackend,), body)()


class ToyDevice(DeviceBackend):
    summary = "a toy"

    def __init__(self, name, found, priority=0, answer=None):
        self.name, self.found, self.rank, self.answer = name, found, priority, answer
        self.asked = []

    def probe(self):
        if isinstance(self.found, BaseException):
            raise self.found
        return self.found

    def priority(self, target):
        if isinstance(self.rank, BaseException):
            raise self.rank
        return self.rank

    def supports(self, problem):
        self.asked.append(problem)
        return self.answer if self.answer is not None else Support.yes()


def registry_of(*backends):
    registry = Registry()
    for backend in backends:
        registry.add(Registered(backend, "toy", f"toy-{backend.name}", "1.2"))
    return registry


def chosen(asked, *backends, measure=None):
    return choose(registry_of(*backends), "loss", asked, CPU, PROBLEM, measure)


def test_auto_takes_the_highest_priority_and_says_so():
    choice = chosen("auto", loss("low", 1), loss("high", 9), loss("middle", 5))
    assert choice.backend.name == "high"
    assert (choice.how, choice.distribution, choice.version) == ("auto", "toy-high", "1.2")
    assert choice.reason == "highest priority here (9, then middle 5)"
    assert [r.name for r in choice.refusals] == ["middle", "low"]
    assert all("lower priority" in r.reason for r in choice.refusals)


def test_ties_go_to_the_first_registered():
    choice = chosen("auto", loss("zeta", 5), loss("alpha", 5), loss("omega", 5))
    assert choice.backend.name == "zeta"
    assert choice.reason == "first of equal priority (5)"


def test_auto_passes_over_what_is_discouraged():
    slow = loss("slow", 99, supports=Support.slow("it takes twice as long", "Use --loss plain"))
    choice = chosen("auto", slow, loss("plain", 1))
    assert choice.backend.name == "plain"
    assert choice.reason == "the others are slow at this"
    assert not choice.warning
    assert [(r.name, r.reason) for r in choice.refusals] == [("slow", "it takes twice as long")]
    choice = chosen("auto", slow)
    assert choice.backend.name == "slow"
    assert choice.warning == "it takes twice as long. Use --loss plain"


@pytest.mark.parametrize("question", ["check", "supports"])
def test_what_is_discouraged_runs_with_a_warning_when_asked_for(question):
    """Whichever of the two questions was answered with a reservation."""
    slow = loss("slow", **{question: Support.slow("it takes twice as long", "Use --loss plain")})
    choice = chosen("slow", slow, loss("plain", 1))
    assert choice.backend is slow
    assert choice.how == "asked"
    assert choice.warning == "it takes twice as long. Use --loss plain"
    assert chosen("auto", slow, loss("plain", 0)).backend.name == "plain"


def test_a_name_that_does_not_exist():
    with pytest.raises(UsageError) as error:
        chosen("nosuch", loss("one"), loss("two"))
    assert error.value.message == "no loss backend is called 'nosuch' (there are: one, two)"
    assert error.value.remedy == "See nanochat-train --list-backends"


@pytest.mark.parametrize(
    ("hook", "name", "extra"),
    [
        ("loss", "cce", "cce"),
        ("loss", "liger", "liger"),
        ("attention", "fa3", "fa3"),
        ("quantization", "te", "te"),
        ("device", "gb10", "gb10"),
        ("device", "tpu", "xla"),
    ],
)
def test_a_name_of_a_plugin_that_is_not_installed_says_how_to_get_it(hook, name, extra):
    ask = choose_device if hook == "device" else choose
    arguments = (name,) if hook == "device" else (hook, name, CPU, PROBLEM)
    with pytest.raises(UsageError) as error:
        ask(registry_of(), *arguments)
    assert error.value.remedy.endswith(f"pip install 'nanochat-core[{extra}]'")


def test_a_name_of_a_broken_plugin_says_why_it_is_broken():
    registry = registry_of(loss("plain"))
    registry.broken.append(Broken("cce", "nanochat-cce", "0.1", "it exploded", "Mend it"))
    registry.broken.append(Broken("p", "d", "1", "other hook", "", hook="attention", name="old"))
    with pytest.raises(UsageError, match="'cce' of nanochat-cce is broken: it exploded") as error:
        choose(registry, "loss", "cce", CPU, PROBLEM)
    assert error.value.remedy == "Mend it"
    with pytest.raises(UsageError, match="no loss backend is called 'old'"):
        choose(registry, "loss", "old", CPU, PROBLEM)


def test_a_name_that_cannot_run_ends_with_reason_and_remedy():
    no = loss("no", 9, check=Support.no("there is no such card", "Buy one"))
    with pytest.raises(UsageError) as error:
        chosen("no", no, loss("plain"))
    assert error.value.message == "loss 'no' cannot run here: there is no such card"
    assert error.value.remedy == "Buy one"


def test_an_alias_is_as_good_as_a_name_and_yields_to_one():
    one = loss("one", aliases=("two", "uno"))
    two = loss("two")
    registry = registry_of(one, two)
    assert registry.find("loss", "uno").backend is one
    assert registry.find("loss", "two").backend is two
    assert chosen("uno", one).backend is one


FAILURES = [
    ({"check": RuntimeError("the driver hung")}, "RuntimeError: the driver hung"),
    ({"supports": ImportError("no symbol\nat line 3")}, "ImportError: no symbol"),
    ({"check": "yes"}, "answered 'yes' where a Support is expected"),
    ({"supports": True}, "answered True where a Support is expected"),
    ({"priority": ZeroDivisionError("division")}, "ZeroDivisionError: division"),
    ({"priority": "first"}, "its priority is 'first', not a number"),
    ({"requires": ("torch",)}, "AttributeError"),
    ({"requires": (Requirement("torch", "new"),)}, "InvalidSpecifier"),
    ({"requires": None}, "TypeError"),
]


@pytest.mark.parametrize(("behaviour", "reason"), FAILURES)
def test_a_backend_that_fails_to_answer_is_refused_and_nothing_crashes(behaviour, reason):
    bad = loss("bad", **behaviour)
    choice = chosen("auto", bad, loss("plain", 1))
    assert choice.backend.name == "plain"
    (refusal,) = choice.refusals
    assert refusal.name == "bad"
    assert reason in refusal.reason
    assert "\n" not in refusal.reason
    assert "toy-bad" in refusal.remedy
    with pytest.raises(UsageError, match="loss 'bad' cannot run here"):
        chosen("bad", bad, loss("plain", 1))


def test_where_none_is_left_all_reasons_are_told():
    with pytest.raises(UsageError) as error:
        chosen(
            "auto",
            loss("one", check=Support.no("no card")),
            loss("two", supports=Support.no("too wide")),
            loss("three", check=OSError("gone")),
        )
    message = error.value.message
    for part in ("one: no card", "two: too wide", "three: its check failed: OSError: gone"):
        assert part in message
    with pytest.raises(UsageError, match="no backend is registered"):
        chosen("auto")


def test_documents_need_a_backend_that_says_it_keeps_them_apart():
    """One that has never heard of them answers yes to every problem."""

    def attention(name, *words):
        body = {"name": name, "summary": "a toy", "capabilities": words}
        return type("Toy", (AttentionBackend,), body)()

    registry = registry_of(attention("old"), attention("new", "documents"))
    problem = AttentionProblem("cpu", 2, 64, 4, 4, 16, documents=True)
    choice = choose(registry, "attention", "auto", CPU, problem)
    assert choice.backend.name == "new"
    assert [(r.name, r.reason) for r in choice.refusals] == [
        ("old", "it cannot keep the documents of a row apart")
    ]
    with pytest.raises(UsageError, match="'old' cannot run here") as error:
        choose(registry, "attention", "old", CPU, problem)
    assert "--document-mask" in error.value.remedy
    plain = replace(problem, documents=False)
    assert choose(registry, "attention", "auto", CPU, plain).backend.name == "old"


def test_requirements_are_met_by_metadata_alone(site):
    site.install("present", distribution="toy-present", version="2.1rc1")
    late = loss("late", requires=(Requirement("toy-present", ">=3"),))
    missing = loss("missing", requires=(Requirement("toy-missing", ">=2", "fetch it"),))
    plain = loss("plain", requires=(Requirement("toy-missing"),))
    fine = loss("fine", requires=(Requirement("Toy_Present", ">=2"), Requirement("toy-present")))
    registry = registry_of(late, missing, plain, fine)
    choice = choose(registry, "loss", "auto", CPU, PROBLEM)
    assert choice.backend is fine
    told = {r.name: (r.reason, r.remedy) for r in choice.refusals}
    assert told == {
        "late": ("toy-present 2.1rc1 is installed, >=3 is needed", "pip install 'toy-present>=3'"),
        "missing": ("toy-missing is not installed", "fetch it"),
        "plain": ("toy-missing is not installed", "pip install 'toy-missing'"),
    }


def test_a_requirement_that_is_not_met_is_the_only_question_asked():
    bad = loss("bad", check=RuntimeError("asked"), requires=(Requirement("toy-missing"),))
    registered = registry_of(bad).find("loss", "bad")
    assert examine(registered, CPU, PROBLEM).reason == "toy-missing is not installed"


def test_measure_needs_something_to_measure_with():
    with pytest.raises(UsageError, match="--loss measure is not possible here"):
        chosen("measure", loss("one"))
    with pytest.raises(UsageError, match="a device cannot be measured"):
        choose_device(registry_of(ToyDevice("toy", CPU)), "measure")


def test_measure_gets_those_that_can_run_and_its_winner_is_taken():
    seen = []

    def measure(hook, candidates, problem):
        seen.append((hook, [c.backend.name for c in candidates], problem))
        return candidates[-1], "1.5 ms, then 2.0 ms"

    slow = loss("slow", 5, supports=Support.slow("it takes twice as long"))
    choice = chosen(
        "measure", loss("one", 9), loss("no", check=Support.no("no")), slow, measure=measure
    )
    assert seen == [("loss", ["one", "slow"], PROBLEM)]
    assert (choice.backend.name, choice.how) == ("slow", "measured")
    assert choice.reason == "1.5 ms, then 2.0 ms"
    assert choice.warning == "it takes twice as long"
    assert {r.name for r in choice.refusals} == {"one", "no"}


GPU = Target(kind="gpu", name="a card", capability=(9, 0), memory=80 * 2**30, count=4)


def test_the_device_of_the_highest_priority_is_taken():
    cpu, gpu = ToyDevice("cpu", CPU), ToyDevice("gpu", GPU, 20)
    choice, target = choose_device(registry_of(cpu, gpu), "auto")
    assert (choice.backend, target) == (gpu, GPU)
    assert choice.reason == "a card, sm_90, 80 GiB, x4"
    assert [r.name for r in choice.refusals] == ["cpu"]
    choice, target = choose_device(registry_of(cpu, gpu), "cpu")
    assert (choice.backend, target) == (cpu, CPU)
    assert choice.how == "asked"


def test_a_discouraged_device_is_passed_over():
    slow = ToyDevice("slow", GPU, 99, Support.slow("this card is slow"))
    choice, _ = choose_device(registry_of(ToyDevice("cpu", CPU), slow), "auto")
    assert choice.backend.name == "cpu"
    choice, _ = choose_device(registry_of(slow), "slow")
    assert choice.warning == "this card is slow"


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (ToyDevice("bad", OSError("bus error")), "its probe failed: OSError: bus error"),
        (ToyDevice("bad", "a card"), "found 'a card' where a Target is expected"),
        (ToyDevice("bad", GPU, answer=True), "answered True where a Support is expected"),
        (ToyDevice("bad", GPU, answer=Support.no("no float16 here")), "no float16 here"),
        (ToyDevice("bad", GPU, ValueError("rank")), "ValueError: rank"),
        (ToyDevice("bad", None), "no such hardware was found"),
    ],
)
def test_a_device_that_fails_to_answer_is_refused_and_nothing_crashes(bad, reason):
    choice, target = choose_device(registry_of(bad, ToyDevice("cpu", CPU)), "auto")
    assert target is CPU
    (refusal,) = choice.refusals
    assert reason in refusal.reason
    with pytest.raises(UsageError) as error:
        choose_device(registry_of(bad, ToyDevice("cpu", CPU)), "bad")
    assert reason in error.value.message


def test_a_device_whose_absence_is_nonsense_is_refused():
    class Absent(ToyDevice):
        def absent(self):
            return "it is not here"

    choice, _ = choose_device(registry_of(Absent("bad", None), ToyDevice("cpu", CPU)), "auto")
    assert "where a Support is expected" in choice.refusals[0].reason


def test_a_device_hears_of_the_dtype_that_was_asked_for():
    device = ToyDevice("cpu", CPU)
    choose_device(registry_of(device), "auto", "float16")
    assert device.asked == [DeviceProblem("float16")]


class ToyAttention(AttentionBackend):
    name = "toy"
    summary = "a toy"


class ToyQuantization(QuantizationBackend):
    name = "toy"
    summary = "a toy"


def four(**changes):
    backends = {
        "device": ToyDevice("cpu", CPU),
        "attention": ToyAttention(),
        "loss": loss("toy"),
        "quantization": ToyQuantization(),
        **changes,
    }
    return registry_of(*backends.values())


def problems_for(target, dtype):
    return dict.fromkeys(
        ("attention", "quantization", "loss"), LossProblem(target.kind, 1, 1, 1, dtype)
    )


def test_a_plan_is_four_choices_as_plain_values():
    more = loss("no", check=Support.no("no card"))
    registry = four()
    registry.add(Registered(more, "toy", "toy-no", "1.2"))
    plan = make_plan(registry, {"loss": "toy"}, problems_for)
    assert [c.hook for c in plan] == ["device", "attention", "loss", "quantization"]
    again = json.loads(json.dumps(plan.as_dict()))
    assert again == plan.as_dict()
    assert again["target"] == "a processor, 16 GiB"
    assert again["loss"]["how"] == "asked"
    assert again["attention"] == {
        "backend": "toy",
        "distribution": "toy-toy",
        "version": "1.2",
        "how": "auto",
        "reason": "the only one that can run here",
        "refused": {},
    }


def test_the_dtype_is_the_users_or_the_devices():
    class Narrow(ToyDevice):
        def default_dtype(self, target):
            return "bfloat16"

    registry = four(device=Narrow("cpu", CPU))
    plan = make_plan(registry, {}, problems_for)
    assert (plan.dtype, plan.problems["loss"].dtype) == ("bfloat16", "bfloat16")
    plan = make_plan(registry, {}, problems_for, dtype="float32")
    assert (plan.dtype, plan.problems["loss"].dtype) == ("float32", "float32")


def test_a_backend_that_does_not_load_is_named_with_its_distribution():
    def load(self):
        raise ImportError("libcuda.so.1: cannot open\nshared object")

    plan = make_plan(four(loss=loss("toy", load=load)), {}, problems_for)
    with pytest.raises(UsageError) as error:
        plan.load()
    assert error.value.message == (
        "loss 'toy' of toy-toy was chosen but did not load: ImportError: libcuda.so.1: cannot open"
    )
    assert error.value.remedy == "Choose another with --loss, or mend toy-toy"
    assert isinstance(error.value.__cause__, ImportError)


def test_every_chosen_backend_is_loaded_once():
    loaded = []
    registry = four(loss=loss("toy", load=lambda self: loaded.append(self.name)))
    registry.add(
        Registered(loss("other", load=lambda self: loaded.append(self.name)), "t", "t", "1")
    )
    make_plan(registry, {}, problems_for).load()
    assert loaded == ["toy"]


def test_errors_carry_the_exit_status():
    assert (NanochatError("x").status, UsageError("x").status) == (1, 2)
    assert str(UsageError("it broke", "Mend it")) == "it broke. Mend it"
