"""Models as people load them: quantised, spread over devices, offloaded, with a LoRA."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers.integrations.finegrained_fp8 import FP8Linear

from sharedllm import SharedLLM, UsageError
from sharedllm.branch import Place
from sharedllm.families import FAMILIES
from sharedllm.weights import linear_weights
from tests.conftest import CONFIG, byte_tokenizer, hooks, randomize, tiny_model, tokens
from tests.contexts import assert_one_sentence

IDS = tokens(6, 1)[None]
LOW = dataclasses.replace(CONFIG, rank=3)


def attach(model: Any, config: Any = CONFIG) -> SharedLLM:
    return randomize(SharedLLM.from_pretrained(model, adapter="none", config=config, tokenizer=byte_tokenizer()))


def answer(llm: SharedLLM) -> Tensor:
    return llm(IDS, context=llm.read(tokens(90, 2))).logits


def assert_learns(llm: SharedLLM) -> None:
    llm.injection.zero_grad()
    answer(llm).square().sum().backward()
    for name, parameter in llm.injection.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


class EightBits(nn.Linear):
    """Codes of a byte with a scale a row, as a quantisation library would keep them."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source.in_features, source.out_features, bias=source.bias is not None)
        self.scale = source.weight.detach().abs().amax(1, keepdim=True) / 127
        codes = (source.weight.detach() / self.scale).round().to(torch.int8)
        self.weight, self.bias = nn.Parameter(codes, requires_grad=False), source.bias

    def dequantized(self) -> Tensor:
        return self.weight.float() * self.scale

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.dequantized().to(x.dtype), self.bias)


class EightFloats(EightBits):
    """The same with floats of a byte, in a parameter like any other."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__(source)
        self.scale = source.weight.detach().abs().amax(1, keepdim=True) / 448
        self.weight = nn.Parameter((source.weight.detach() / self.scale).to(torch.float8_e4m3fn), requires_grad=False)


@pytest.mark.parametrize("kind", [EightBits, EightFloats])
def test_a_quantised_model_is_read_by_what_its_layers_do(kind):
    model = tiny_model(attention_bias=True)
    plain = tiny_model(attention_bias=True)
    for ours, theirs in zip(model.model.layers, plain.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            coded = kind(getattr(ours.self_attn, name))
            setattr(ours.self_attn, name, coded)
            getattr(theirs.self_attn, name).weight.data = coded.dequantized()
    for config in (CONFIG, LOW):
        first, second = attach(model, config), attach(plain, config)
        torch.testing.assert_close(answer(first), answer(second))
        assert {p.dtype for p in first.injection.parameters()} == {torch.float32}
        assert_learns(first)
        first.detach(), second.detach()
    assert hooks(model) == []


@pytest.mark.parametrize("block", [(16, 8), None], ids=["blocks", "one scale"])
@pytest.mark.parametrize("scheme", ["dynamic", "static"])
def test_floats_of_eight_bits_are_read_by_the_scale_beside_them(block, scheme):
    # Not by an identity, of which a fixed scale of activations (here 1) would keep what it can show, and which most
    # machines cannot compute.
    linear = FP8Linear(20, 24, block, scheme, has_bias=True)
    numbers = torch.randn(24, 20, generator=torch.Generator().manual_seed(0)).to(torch.float8_e4m3fn)
    scale = torch.rand_like(linear.weight_scale_inv) + 0.5
    linear.load_state_dict({"weight": numbers, "weight_scale_inv": scale, "bias": torch.ones(24)}, strict=False)
    weight, bias = linear_weights(linear, 20, torch.bfloat16)
    row, column = torch.arange(24)[:, None], torch.arange(20)
    of_each = scale if block is None else scale[row // block[0], column // block[1]]
    assert torch.equal(weight, (numbers.float() * of_each).bfloat16()) and torch.equal(bias, torch.ones(24))


class Packed(nn.Module):
    """Codes of a byte under another name than `weight`, all in buffers, and no word of a bias."""

    def __init__(self, source: nn.Linear) -> None:
        super().__init__()
        coded = EightBits(source)
        self.register_buffer("packed", coded.weight.detach())
        self.register_buffer("scale", coded.scale)

    def forward(self, x: Tensor) -> Tensor:
        return x @ (self.packed.float() * self.scale).to(x.dtype).T


def test_a_quantised_layer_of_buffers_alone_without_a_bias_is_read():
    model, plain = tiny_model(), tiny_model()
    for ours, theirs in zip(model.model.layers, plain.model.layers, strict=True):
        for name in ("q_proj", "o_proj"):
            source = getattr(ours.self_attn, name)
            setattr(ours.self_attn, name, Packed(source))
            getattr(theirs.self_attn, name).weight.data = EightBits(source).dequantized()
    torch.testing.assert_close(answer(attach(model)), answer(attach(plain)))


def test_a_layer_without_any_weights_is_refused_in_one_sentence():
    class Nothing(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    model = tiny_model()
    model.model.layers[1].self_attn.q_proj = Nothing()
    with pytest.raises(UsageError, match=r"Nothing.*has no weights.*without its quantisation") as error:
        attach(model)
    assert_one_sentence(error)
    assert hooks(model) == []


def test_a_large_bias_does_not_round_the_weights_away():
    linear = nn.Linear(4, 3).bfloat16()
    linear.bias.data.fill_(300)
    linear.weight.data = (linear.weight.data.float() * 50).round().bfloat16()
    coded = EightBits(linear)
    weight, bias = linear_weights(coded, 4, torch.bfloat16)
    assert torch.equal(weight, coded.dequantized().bfloat16()) and torch.equal(bias, linear.bias)


def test_weights_that_cannot_be_read_are_refused_in_one_sentence():
    class Elsewhere(EightBits):
        def forward(self, x: Tensor) -> Tensor:
            raise RuntimeError("needs a GPU")

    model = tiny_model()
    model.model.layers[1].self_attn.o_proj = Elsewhere(model.model.layers[1].self_attn.o_proj)
    with pytest.raises(UsageError, match=r"o_proj in layer 1 \(Elsewhere\).*needs a GPU.*without"):
        attach(model)
    assert hooks(model) == []


def test_torchao_int8_reads_asks_and_learns():
    quantization = pytest.importorskip("torchao.quantization")
    model = tiny_model().requires_grad_(False)
    quantization.quantize_(model, quantization.Int8WeightOnlyConfig())
    before = model(IDS).logits
    llm = attach(model, LOW)
    assert not torch.equal(answer(llm), before)
    assert_learns(llm)
    llm.generate(IDS, context=llm.read(tokens(90, 2)), max_new_tokens=3, do_sample=False)
    assert torch.equal(llm.detach()(IDS).logits, before)


def test_bitsandbytes_int8_reads_and_learns():
    bnb = pytest.importorskip("bitsandbytes")
    model = tiny_model().requires_grad_(False)
    for layer in model.model.layers:
        for name in ("q_proj", "o_proj"):
            source = getattr(layer.self_attn, name)
            coded = bnb.nn.Linear8bitLt(source.in_features, source.out_features, bias=False, has_fp16_weights=False)
            coded.load_state_dict(source.state_dict())
            setattr(layer.self_attn, name, coded.to("cpu"))
    llm = attach(model)
    assert_learns(llm)


OFFLOADS = {
    "cpu": lambda accelerate, model, _: accelerate.cpu_offload(model, torch.device("cpu")),
    "disk": lambda accelerate, model, folder: accelerate.disk_offload(model, folder, torch.device("cpu")),
    "mixed": lambda accelerate, model, folder: accelerate.dispatch_model(
        model,
        {"model.embed_tokens": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu", "model.norm": "disk"}
        | {f"model.layers.{j}": "disk" if j % 2 else "cpu" for j in range(4)},
        main_device="cpu",
        offload_dir=folder,
    ),
}


@pytest.mark.parametrize("name", OFFLOADS)
def test_an_offloaded_model_computes_the_same(name, tmp_path):
    import accelerate

    for config in (CONFIG, LOW):
        expected, plain = answer(attach(tiny_model(), config)), tiny_model()(IDS).logits
        model = OFFLOADS[name](accelerate, tiny_model(), str(tmp_path / str(config.rank)))
        assert any(p.device.type == "meta" for p in model.parameters()), "nothing is offloaded; the test is empty"
        llm = attach(model, config)
        assert all(p.device.type == "cpu" for p in llm.injection.parameters())
        torch.testing.assert_close(answer(llm), expected)
        assert_learns(llm)
        llm.generate(IDS, context=llm.read(tokens(90, 2)), max_new_tokens=3, do_sample=False)
        assert torch.equal(llm.detach()(IDS).logits, plain)


def test_an_offloaded_model_stays_where_it_was_put():
    import accelerate

    model = accelerate.dispatch_model(tiny_model(), {"": "cpu"}, main_device="cpu", force_hooks=True)
    with pytest.raises(UsageError, match="leave out device and dtype"):
        SharedLLM.from_pretrained(model, adapter="none", config=CONFIG, device="cpu")


def test_the_lower_model_stops_where_it_should_also_under_a_hook_of_the_whole_decoder():
    import accelerate

    config = dataclasses.replace(CONFIG, search_by="last", injected_layers=2)
    expected = answer(attach(tiny_model(), config))
    model, called = tiny_model(), []
    for j, layer in enumerate(model.model.layers):
        layer.register_forward_pre_hook(lambda *_, j=j: called.append(j))
    model = accelerate.dispatch_model(model, {"model": "cpu", "lm_head": "cpu"}, main_device="cpu", force_hooks=True)
    assert hasattr(model.model, "_hf_hook"), "the decoder has no hook; the test is empty"
    llm = attach(model, config)
    llm.read(tokens(90, 2))
    assert set(called) == {0, 1}
    torch.testing.assert_close(answer(llm), expected)


def test_a_branch_and_its_slots_are_where_their_layer_is():
    # A machine with one device has a second one that computes nothing but shapes: torch's "meta".
    near = attach(tiny_model())
    context = near.read(tokens(90, 2))
    model = tiny_model()
    model.model.layers[2].to("meta")
    llm = attach(model)
    context.reader = None
    memory = llm.recall(context, IDS, search="later")
    assert [k.device.type for k in memory.keys] == ["cpu", "cpu", "meta"]
    assert {p.device.type for p in llm.injection.branches[2].parameters()} == {"meta"}
    hidden = torch.empty(1, 6, 32, device="meta")
    place = Place.of(memory, torch.zeros(1, 6), llm.config, llm.parts)
    assert llm.injection.branches[2](hidden, memory, 2, place).device.type == "meta"
    assert llm.parts.joined(2, hidden.new_zeros(1, 6, 32, device="cpu"), hidden).device.type == "meta"


class Lora(nn.Module):
    """What peft puts around a module, said plainly, for where peft is not installed: y + s * x W, or y + s * W[x]."""

    def __init__(self, base: Any) -> None:
        super().__init__()
        rows, columns = base.weight.shape if isinstance(base, nn.Embedding) else reversed(base.weight.shape)
        self.base_layer, self.active_adapters, self.disable_adapters = base, ["mine"], False
        self.lora, self.scaling = nn.ParameterDict({"mine": torch.randn(rows, columns) * 0.1}), {"mine": 2.0}
        self.merged_adapters: list[str] = []

    def get_base_layer(self) -> Any:
        return self.base_layer

    def merge(self) -> None:
        change = self.lora["mine"].data * self.scaling["mine"]
        self.base_layer.weight.data += change if isinstance(self.base_layer, nn.Embedding) else change.T
        self.merged_adapters.append("mine")

    def forward(self, x: Tensor) -> Tensor:
        off = self.disable_adapters or self.merged_adapters
        weight = self.lora["mine"] * (0.0 if off else self.scaling["mine"])
        return self.base_layer(x) + (x @ weight if x.is_floating_point() else weight[x])


def with_stand_in(model: Any) -> Any:
    torch.manual_seed(7)
    for layer in model.model.layers:
        for name in ("q_proj", "v_proj"):
            setattr(layer.self_attn, name, Lora(getattr(layer.self_attn, name)))
    model.model.embed_tokens = Lora(model.model.embed_tokens)
    return model


def with_lora(model: Any) -> Any:
    peft = pytest.importorskip("peft")
    targets = ["q_proj", "v_proj", "o_proj", "embed_tokens"]
    torch.manual_seed(7)
    return peft.get_peft_model(model, peft.LoraConfig(r=2, target_modules=targets, init_lora_weights=False))


def loras(model: Any) -> list[Any]:
    return [module for module in model.modules() if hasattr(type(module), "get_base_layer")]


@pytest.mark.parametrize("put_on", [with_stand_in, with_lora])
def test_what_was_read_is_of_the_model_with_the_loras_that_were_on_it(put_on):
    first, model = attach(put_on(tiny_model())), tiny_model()
    second = attach(model)
    bare = second.read(tokens(90, 2))
    lora = put_on(model)
    assert torch.equal(answer(first), answer(second))
    assert first.fingerprint == second.fingerprint, "the adapter would be another's"
    assert first.reader.identity == second.reader.identity != bare.fingerprint
    under = second.read(tokens(90, 2))
    second(IDS, context=under), first(IDS, context=under)
    with pytest.raises(UsageError, match="made with another model"):
        second(IDS, context=bare)
    for module in loras(lora):
        module.scaling = {name: 3.0 for name in module.scaling}
    assert second.reader.identity != under.fingerprint
    for module in loras(lora):
        module.scaling = dict(loras(first.model)[0].scaling)
    assert second.reader.identity == under.fingerprint


@pytest.mark.parametrize("put_on", [with_stand_in, with_lora])
def test_a_lora_that_learns_or_is_switched_off_makes_another_model(put_on):
    llm = attach(tiny_model())
    bare = llm.read(tokens(90, 2))
    lora = put_on(llm.model)
    under = llm.read(tokens(90, 2))
    with torch.no_grad():
        next(p for n, p in lora.named_parameters() if "lora" in n).add_(1)
    with pytest.raises(UsageError, match="made with another model"):
        llm(IDS, context=under)
    for module in loras(lora):
        if hasattr(module, "enable_adapters"):
            module.enable_adapters(False)
        else:
            module.disable_adapters = True
    llm(IDS, context=bare)


@pytest.mark.parametrize("put_on", [with_stand_in, with_lora])
def test_branches_start_from_the_weights_that_a_lora_was_merged_into(put_on):
    llm = attach(put_on(tiny_model()), LOW)
    context = llm.read(tokens(90, 2))
    with torch.no_grad():
        before = [llm(ids, context=context).logits for ids in (IDS, IDS[:, :1])]
    for module in loras(llm.model):
        module.merge()
    with torch.no_grad():
        after = [llm(ids, context=context).logits for ids in (IDS, IDS[:, :1])]
    learning = [llm(ids, context=context).logits for ids in (IDS, IDS[:, :1])]  # by the weights as they are
    torch.testing.assert_close(after, learning, atol=1e-4, rtol=1e-4)
    assert not torch.allclose(before[0], after[0], atol=1e-2), "the branches are the same; the test is empty"


@pytest.mark.parametrize("put_on", [with_stand_in, with_lora])
def test_a_family_without_an_entry_is_recognised_with_a_lora_on_its_queries(put_on, monkeypatch):
    model = put_on(tiny_model())
    monkeypatch.delitem(FAMILIES, "llama")
    llm = attach(model)
    assert not llm.parts.known and not torch.equal(answer(llm), llm.model(IDS).logits)


def test_a_lora_and_the_adapter_are_put_on_in_either_order():
    for config in (CONFIG, LOW):
        first, model = attach(with_lora(tiny_model()), config), tiny_model()
        second = attach(model, config)
        without = answer(second)
        lora = with_lora(model)
        assert torch.equal(answer(first), answer(second))
        assert not torch.equal(answer(second), without)
        assert_learns(second)
        assert any(p.grad is not None and p.grad.abs().sum() > 0 for n, p in lora.named_parameters() if "lora_" in n)
        first.generate(input_ids=IDS, context=first.read(tokens(90, 2)), max_new_tokens=3, do_sample=False)
        second.detach()
        assert hooks(model) == []
