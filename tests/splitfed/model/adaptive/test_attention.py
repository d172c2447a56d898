import splitfed.model._torchvision  # noqa: F401  before timm, which imports torchvision

# isort: split
import pytest
import torch
from timm.layers import Attention
from torch import nn

from splitfed.errors import ModelError
from splitfed.model.adaptive.attention import ClsAttention
from splitfed.model.build import build, split
from splitfed.model.forward import autocast, suit_attention
from splitfed.model.settings import ModelConfig
from splitfed.seeds import Key


def front(cut=2, **args):
    args = {"patch_size": 4, "embed_dim": 24, "depth": 3, "num_heads": 3, **args}
    vit = build(ModelConfig(name="vit_tiny_patch16_224", cut=cut, image_size=16, args=args), 5, key=Key(1))
    with torch.no_grad():
        for i, (name, parameter) in enumerate(vit.named_parameters()):
            # a fresh model attends evenly everywhere, which would hide mistakes
            noise = torch.randn(parameter.shape, generator=Key(i).generator())
            parameter.add_(noise, alpha=0.5 if "qkv" in name or "_norm" in name else 0.1)
    return split(vit, cut)[0]


@pytest.fixture
def images():
    return torch.randn(6, 3, 16, 16, generator=Key(2).generator())


def timms_map(model, images):
    """The map that timm's unfused attention computes on its way: what goes into its dropout."""
    attn, seen = model.blocks[-1].attn, []
    fused, attn.fused_attn = attn.fused_attn, False
    hook = attn.attn_drop.register_forward_hook(lambda _module, inputs, _output: seen.append(inputs[0]))
    with torch.no_grad():
        model(images)
    hook.remove()
    attn.fused_attn = fused
    return seen[0][:, :, 0].float().mean(1)


@pytest.mark.parametrize(
    "args",
    [{}, {"reg_tokens": 3}, {"qk_norm": True}, {"num_heads": 1}, {"qkv_bias": False, "scale_attn_norm": True}],
    ids=str,
)
@pytest.mark.parametrize("cut", [1, 3])
def test_it_is_timms_unfused_map(args, cut, images):
    model = front(cut, **args)
    attention = ClsAttention(model)
    expected = timms_map(model, images)
    model(images)
    assert model.blocks[-1].attn.fused_attn
    read = attention.read()
    assert read.dtype == torch.float32
    torch.testing.assert_close(read, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(read.sum(1), torch.ones(6))
    assert expected.std() > 0.01  # the map is not flat, so this compares something


@pytest.mark.parametrize("args", [{}, {"qk_norm": True}], ids=str)
def test_it_reads_under_bfloat16_autocast(args, images):
    model = front(**args)
    attention = ClsAttention(model)
    exact = timms_map(model, images)
    with torch.autocast("cpu", torch.bfloat16):
        model(images)
        inside = attention.read()
        model(images)
    outside = attention.read()
    assert inside.dtype == outside.dtype == torch.float32
    assert torch.equal(inside, outside)
    # Rounding to bfloat16 moves it by 0.02, another image's map is 0.3 off.
    torch.testing.assert_close(inside, exact, rtol=0, atol=0.1)
    torch.testing.assert_close(inside.sum(1), torch.ones(6))


def test_a_float64_model_is_read_too(images):
    model = front(qk_norm=True).double()
    attention = ClsAttention(model)
    expected = timms_map(model, images.double())
    model(images.double())
    torch.testing.assert_close(attention.read(), expected, rtol=1e-5, atol=1e-7)


def test_it_reads_the_last_batch_once(images):
    model = front()
    attention = ClsAttention(model)
    model(images[:2])
    model(images)
    assert len(attention.read()) == 6
    with pytest.raises(RuntimeError, match="no batch"):
        attention.read()


def test_disabled_and_closed_it_keeps_nothing(images):
    model = front()
    attention = ClsAttention(model)
    attention.enabled = False
    model(images)
    with pytest.raises(RuntimeError, match="no batch"):
        attention.read()
    attention.enabled = True
    model(images)
    attention.close()
    model(images)
    with pytest.raises(RuntimeError, match="no batch"):
        attention.read()


def test_training_saves_no_more_and_gets_the_same_gradients(images):
    def saved_and_gradients(model):
        saved = []
        with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x.numel()) or x, lambda x: x):
            loss = model(images).square().sum()
        loss.backward()
        return saved, [p.grad for p in model.parameters()]

    plain, watched = front(), front()
    attention = ClsAttention(watched)
    expected, got = saved_and_gradients(plain), saved_and_gradients(watched)
    assert not attention.read().requires_grad
    assert got[0] == expected[0]
    assert all(torch.equal(a, b) for a, b in zip(got[1], expected[1], strict=True))


def test_other_attention_is_refused():
    class Mine(Attention):
        pass

    custom = front()
    custom.blocks[-1].attn.__class__ = Mine
    bare = front()
    bare.blocks[-1] = nn.Identity()
    for model, kind in ((custom, "Mine"), (bare, "Identity"), (front(attn_layer="diff"), "DiffAttention")):
        with pytest.raises(ModelError, match=kind):
            ClsAttention(model)


def test_in_bfloat16_a_cpu_computes_it_as_two_products(images):
    """Where the fused kernel is slower; the same but for rounding, also of tokens that are not attended to."""
    cpu, model = torch.device("cpu"), front(1)
    attn, around = model.blocks[0].attn, torch.rand(6, 1, 1, 17, generator=Key(3).generator()) < 0.5
    around[..., 0], tokens = True, torch.randn(6, 17, 24, generator=Key(4).generator())

    def made(precision):
        suit_attention(model, precision, cpu)
        with autocast(precision, cpu), torch.no_grad():
            return attn.fused_attn, attn(tokens, attn_mask=around).float()

    (fused, exact), (apart, half) = made("float32"), made("bfloat16")
    assert (fused, apart) == (True, False)
    torch.testing.assert_close(half, exact, rtol=0.02, atol=0.02 * float(exact.abs().max()))
