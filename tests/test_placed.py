"""Models as people load them: quantised, spread over devices, offloaded, with a LoRA."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sharedllm import SharedLLM, UsageError
from sharedllm.architectures import linear_weights
from sharedllm.branch import Place
from tests.conftest import CONFIG, byte_tokenizer, hooks, randomize, tiny_model, tokens

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


def test_a_quantised_model_is_read_by_what_its_layers_do():
    model = tiny_model(attention_bias=True)
    plain = tiny_model(attention_bias=True)
    for ours, theirs in zip(model.model.layers, plain.model.layers, strict=True):
        for name in ("q_proj", "k_proj", "v_proj", "o_proj"):
            coded = EightBits(getattr(ours.self_attn, name))
            setattr(ours.self_attn, name, coded)
            getattr(theirs.self_attn, name).weight.data = coded.dequantized()
    for config in (CONFIG, LOW):
        first, second = attach(model, config), attach(plain, config)
        torch.testing.assert_close(answer(first), answer(second))
        assert_learns(first)
        first.detach(), second.detach()
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


def test_a_lora_and_the_adapter_are_put_on_in_either_order():
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["q_proj", "v_proj", "o_proj"], init_lora_weights=False)

    def with_lora(model: Any) -> Any:
        torch.manual_seed(7)
        return peft.get_peft_model(model, settings)

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
