"""The training step: as its plain form bit for bit, in bfloat16, compiled, replayed as a graph."""

import contextlib
import itertools
from dataclasses import replace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from stib_fast.data import SpiralStream
from stib_fast.functional import gaussian_mi
from stib_fast.models import STIB, vector_model, vector_stib
from stib_fast.training import Execution, Optimisation, stib_objective
from stib_fast.training import step as step_module
from stib_fast.training.objective import OBJECTIVES
from stib_fast.training.step import TrainingStep

# Every schedule moves at every step, and the clipping clips some steps of the twenty.
SETTINGS = Optimisation(
    steps=20, batch=64, warmup=5, gradient_clip=4.0, invariance_weight=6.0, lambda_growth=1.1
)
CRITIC_SETTINGS = replace(SETTINGS, critic_steps=3)
CPU = Execution(device="cpu")


def new_model():
    torch.manual_seed(0)
    return vector_stib(2, 2, 2, 1, feature_dim=3, hidden=(16,))


def stepped(model, execution, settings=SETTINGS):
    """Terms of twenty steps in a model's dtype, and the weights after them."""
    stream = SpiralStream(settings.batch, 1, dtype=model.dtype)
    step = TrainingStep(model, settings, execution)
    terms = []
    for number in range(settings.steps):
        critic_batches = [next(stream) for _ in range(step.critic_batches)]
        terms.append(torch.stack(step(next(stream), number, critic_batches)))
    return torch.stack(terms), model.state_dict()


def taken(execution, settings=SETTINGS):
    return stepped(new_model(), execution, settings)


def plainly_taken(settings=SETTINGS):
    """The same with numbers instead of tensors and torch's own clipping.

    The critic's own steps are written out.
    """
    model, stream = new_model(), SpiralStream(settings.batch, seed=1)
    critic = model.critic
    optimiser = torch.optim.Adam(model.parameters(), fused=True)
    main = [p for name, p in model.named_parameters() if not name.startswith("critic.")]
    terms, norms = [], []
    for number in range(settings.steps):
        lam = settings.lambda_at(number)
        optimiser.param_groups[0]["lr"] = settings.learning_rate_at(number)
        for _ in range(settings.critic_steps - 1):
            optimiser.zero_grad()
            before = [p.detach().clone() for p in main]
            x, y, _ = next(stream)
            z0, _ = model.split(model.sample(model.encoder(x)).detach())
            target = critic.h(y / critic.y_scale)
            mi = gaussian_mi(critic.critic(z0), target)
            back = critic.h_inverse(target) * critic.y_scale
            (critic.cycle_weight * (back - y).square().sum(1).mean() - mi).backward()
            optimiser.step()
            assert all(torch.equal(p, old) for p, old in zip(main, before, strict=True))
        optimiser.zero_grad()
        x, y, _ = next(stream)
        found = stib_objective(model, x, y, lam, settings.invariance_weight)
        found.loss.backward()
        norms.append(torch.nn.utils.clip_grad_norm_(main, settings.gradient_clip * lam) / lam)
        optimiser.step()
        terms.append(torch.stack([term.detach() for term in found]))
    assert min(norms) < settings.gradient_clip < max(norms)
    return torch.stack(terms), model.state_dict()


def assert_same(found, expected):
    assert torch.equal(found[0], expected[0])
    for name, value in expected[1].items():
        assert torch.equal(found[1][name], value), name


def test_schedules_in_tensors_change_no_bit():
    assert_same(taken(CPU), plainly_taken())


def test_the_critics_own_steps_are_plain_ones_bit_for_bit():
    found = taken(CPU, CRITIC_SETTINGS)
    assert_same(found, plainly_taken(CRITIC_SETTINGS))
    assert not torch.equal(found[0], taken(CPU)[0])


def test_a_step_takes_the_number_of_batches_that_the_settings_say():
    batch = next(SpiralStream(SETTINGS.batch, seed=1))
    step = TrainingStep(new_model(), CRITIC_SETTINGS, CPU)
    with pytest.raises(ValueError, match="takes 2 batches for the critic alone; got 0"):
        step(batch, 0)
    with pytest.raises(ValueError, match="takes 0 batches for the critic alone; got 1"):
        TrainingStep(new_model(), SETTINGS, CPU)(batch, 0, [batch])


def test_bfloat16_products_stay_close():
    exact, rounded = (taken(replace(CPU, amp=amp))[0] for amp in (False, True))
    assert rounded.isfinite().all()
    # bfloat16 rounds by 2^-9 at most; errors of 64 rows average out in the loss (found: 2e-4). The
    # mutual information feels them most: features rounded so give 3 % (found: 2.6 %).
    torch.testing.assert_close(rounded[:, 0], exact[:, 0], rtol=2**-9, atol=0.0)
    torch.testing.assert_close(rounded[:, 4], exact[:, 4], rtol=0.1, atol=0.0)
    assert not torch.equal(rounded, exact)


@pytest.mark.parametrize("amp", [False, True])
def test_compiled_is_as_eager(monkeypatch, amp):
    execution = replace(CPU, amp=amp)
    expected = taken(execution)
    compile_ = torch.compile
    # The eager backend draws the same latent noise; one graph, compiled once, serves all steps.
    monkeypatch.setattr(
        torch, "compile", lambda f: compile_(f, backend="aot_eager", fullgraph=True)
    )
    torch._dynamo.reset()
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = taken(replace(execution, compile=True))
    # The same operators; where a torch takes a sum in another order, float32 rounding grows over
    # twenty steps (found: equal).
    torch.testing.assert_close(found[0], expected[0], rtol=1e-4, atol=1e-5)


class Recording(TorchDispatchMode):
    """Stands in for a CUDA graph on a CPU: keeps the operators of a capture, runs them again.

    As there, replaying reads and writes the tensors of the capture, Python and its numbers are out
    of it, nothing that was captured has happened, and asking for a number is an error.
    """

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if operator is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("waits for the device")
        if operator._schema.is_mutable:
            result = args[0] if operator._schema.returns else None
        else:
            result = operator(*args, **kwargs)
        self.calls.append((operator, args, kwargs, result))
        return result

    @contextlib.contextmanager
    def capture(self):
        state = torch.get_rng_state()
        with self:
            yield
        torch.set_rng_state(state)

    @torch.no_grad()
    def replay(self):
        for operator, args, kwargs, result in self.calls:
            new = operator(*args, **kwargs)
            if operator._schema.is_mutable:
                continue
            known = {storage(tensor) for tensor in tensors((args, kwargs))}
            for into, value in zip(tensors(result), tensors(new), strict=True):
                if storage(into) not in known:  # no view
                    into.copy_(value)


def tensors(tree):
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor)]


def storage(tensor):
    return tensor.untyped_storage()._cdata


@pytest.fixture
def recorded_graphs(monkeypatch):
    """torch.cuda with recordings for graphs; the recordings made."""
    made = []

    def graph():
        made.append(Recording())
        return made[-1]

    class Stream:
        def wait_stream(self, other):
            pass

    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "current_stream", Stream)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    monkeypatch.setattr(torch.cuda, "CUDAGraph", graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda recording, stream: recording.capture())
    return made


@pytest.mark.parametrize("critic_steps", [1, 3])
@pytest.mark.parametrize("amp", [False, True])
def test_a_recorded_step_repeats_the_plain_one_bit_for_bit(recorded_graphs, amp, critic_steps):
    execution = replace(CPU, amp=amp)
    settings = replace(SETTINGS, critic_steps=critic_steps)
    expected = taken(execution, settings)
    assert_same(taken(replace(execution, cuda_graph=True), settings), expected)
    (recording,) = recorded_graphs
    names = [str(operator) for operator, *_ in recording.calls]
    assert names.count("aten._fused_adam_.tensor_lr") == critic_steps
    assert not any("zero_" in name for name in names)  # gradients are written, not added to


def test_a_captured_step_runs_no_python(recorded_graphs, monkeypatch):
    calls = itertools.count()

    def counted(*args, **options):
        next(calls)
        return stib_objective(*args, **options)

    objective = OBJECTIVES[STIB]._replace(function=counted)
    monkeypatch.setitem(OBJECTIVES, STIB, objective)
    taken(replace(CPU, cuda_graph=True))
    assert next(calls) == step_module.WARM_UP + 1


@pytest.mark.parametrize("changed", ["x", "lambda"])
def test_the_recording_notices_what_is_left_out_of_the_graph(recorded_graphs, changed):
    """The stand-in itself: what a capture takes from Python stays as it was."""
    function = step_module.Replayed(lambda x: (x * factor["now"],))
    factor, x = {"now": 2.0}, torch.ones(())
    for _ in range(step_module.WARM_UP + 1):
        (result,) = function(x)
    if changed == "x":
        assert function(x * 5)[0] == 10
    else:
        factor["now"] = 3.0
        assert function(x)[0] == 2
    assert result is function(x)[0]


# It moves no mutual information: its gradient is rounding, and Adam makes steps of that.
SHIFT = "critic.critic.2.bias"


@pytest.mark.parametrize(
    ("micro_batch", "compiled", "critic_steps"),
    [(1, False, 1), (7, False, 1), (63, False, 1), (30, True, 1), (7, False, 3), (63, False, 3)],
)
def test_micro_batches_take_the_step_of_the_batch(monkeypatch, micro_batch, compiled, critic_steps):
    if compiled:
        compile_ = torch.compile
        monkeypatch.setattr(torch, "compile", lambda f: compile_(f, backend="aot_eager"))
        torch._dynamo.reset()
    settings = replace(SETTINGS, critic_steps=critic_steps)
    expected = stepped(new_model().double(), CPU, settings)
    execution = replace(CPU, micro_batch=micro_batch, compile=compiled)
    found = stepped(new_model().double(), execution, settings)
    # Sums in another order, 1e-16 times the condition of the d x d step; Adam divides by their
    # root, which twenty steps carry on (found: 2e-12).
    torch.testing.assert_close(found[0], expected[0], rtol=1e-9, atol=1e-9)
    for name, value in expected[1].items():
        if name != SHIFT:
            torch.testing.assert_close(found[1][name], value, rtol=1e-9, atol=1e-9, msg=name)


def test_micro_batches_repeat_their_random_numbers_and_are_all_that_the_networks_see():
    model, seen = new_model(), []
    dropout = torch.nn.Dropout(0.5)
    model.encoder.register_forward_hook(lambda module, given, out: dropout(out))
    model.predictor.register_forward_hook(lambda module, given, out: seen.append(given[0].detach()))
    model.critic.critic.register_forward_hook(
        lambda module, given, out: seen.append(given[0].detach())
    )
    x, y, _ = next(SpiralStream(SETTINGS.batch, seed=1))
    TrainingStep(model, SETTINGS, replace(CPU, micro_batch=30))((x, y), 0)
    critic = [part for part in seen if part.shape[1] == model.z0_dim]
    assert [len(part) for part in critic] == [30, 30, 4, 30, 30, 4]
    assert max(len(part) for part in seen) == 30
    for first, second in zip(critic[:3], critic[3:], strict=True):
        assert torch.equal(first, second)


def test_an_optimiser_state_comes_back_with_the_step_s_own_learning_rate():
    whole = taken(CPU)
    model, stream = new_model(), SpiralStream(SETTINGS.batch, seed=1)
    first = TrainingStep(model, SETTINGS, CPU)
    for number in range(7):
        first(next(stream), number)
    state = first.state_dict()
    second = TrainingStep(model, SETTINGS, CPU)
    second.load_state_dict(state)
    for number in range(7, SETTINGS.steps):
        second(next(stream), number)
    assert all(torch.equal(value, whole[1][name]) for name, value in model.state_dict().items())


BASELINES = ["stib-no-adv", "vae", "cvae", "cvib"]


def baseline_taken(kind, execution, dtype=torch.float64, settings=SETTINGS):
    """Terms of twenty steps of another model, and its weights after them."""
    torch.manual_seed(0)
    return stepped(vector_model(kind, 2, 2, 2, 1, hidden=(16,)).to(dtype), execution, settings)


@pytest.mark.parametrize("kind", BASELINES)
@pytest.mark.parametrize(("micro_batch", "compiled"), [(7, False), (63, False), (None, True)])
def test_the_other_models_take_the_same_step_in_every_form(
    monkeypatch, kind, micro_batch, compiled
):
    compile_ = torch.compile
    monkeypatch.setattr(
        torch, "compile", lambda f: compile_(f, backend="aot_eager", fullgraph=True)
    )
    torch._dynamo.reset()
    expected = baseline_taken(kind, CPU)
    found = baseline_taken(kind, replace(CPU, micro_batch=micro_batch, compile=compiled))
    # Sums in another order, float64, carried on by twenty steps of Adam.
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("kind", BASELINES)
def test_bfloat16_products_of_the_other_models_stay_close(kind):
    exact, rounded = (
        baseline_taken(kind, replace(CPU, amp=amp), torch.float32)[0] for amp in (False, True)
    )
    assert not torch.equal(rounded, exact)
    # Errors of 2^-9 average out over 64 rows; Adam carries them on.
    torch.testing.assert_close(rounded[:, 0], exact[:, 0], rtol=2**-7, atol=0.0)


@pytest.mark.parametrize("kind", BASELINES)
def test_a_recorded_step_of_the_other_models_repeats_the_plain_one(recorded_graphs, kind):
    expected = baseline_taken(kind, CPU)
    assert_same(baseline_taken(kind, replace(CPU, cuda_graph=True)), expected)
    assert len(recorded_graphs) == 1


@pytest.mark.parametrize("kind", BASELINES)
def test_the_other_models_take_no_batches_for_a_critic(kind):
    expected = baseline_taken(kind, CPU)
    assert_same(baseline_taken(kind, CPU, settings=CRITIC_SETTINGS), expected)
