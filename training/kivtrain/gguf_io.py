"""GGUF files: written for llama.cpp, and read back to go on training."""

from __future__ import annotations

import hashlib
from pathlib import Path

import gguf
import numpy as np
import torch
from torch import Tensor

from .config import Shape
from .model import Model
from .tokenizer import END_ID, START_ID, Vocabulary

_BLOCK = {
    "attn_norm": "attn_norm",
    "ffn_norm": "ffn_norm",
    "attn.q_norm": "attn_q_norm.weight",
    "attn.k_norm": "attn_k_norm.weight",
    "attn.q.weight": "attn_q.weight",
    "attn.k.weight": "attn_k.weight",
    "attn.v.weight": "attn_v.weight",
    "attn.out.weight": "attn_output.weight",
    "gate.weight": "ffn_gate.weight",
    "up.weight": "ffn_up.weight",
    "down.weight": "ffn_down.weight",
}


def gguf_name(name: str) -> str:
    """llama.cpp's name of one of our tensors."""
    if name == "embed.weight":
        return "token_embd.weight"
    if name == "norm":
        return "output_norm.weight"
    _, layer, rest = name.split(".", 2)
    theirs = _BLOCK[rest]
    return f"blk.{layer}.{theirs}" if theirs.endswith(".weight") else f"blk.{layer}.{theirs}.weight"


def export(model: Model, vocabulary: Vocabulary, path: Path, name: str, kind: str) -> str:
    """Writes a model; returns the file's SHA-256. `kind` is f16, q8_0 or f32."""
    s = model.shape
    w = gguf.GGUFWriter(path, "qwen3")
    w.add_name(name)
    w.add_context_length(s.n_ctx)
    w.add_embedding_length(s.d_model)
    w.add_block_count(s.n_layer)
    w.add_feed_forward_length(s.d_ff)
    w.add_head_count(s.n_head)
    w.add_head_count_kv(s.n_kv)
    w.add_key_length(s.head_dim)
    w.add_value_length(s.head_dim)
    w.add_rope_dimension_count(s.head_dim)
    w.add_rope_freq_base(s.rope_theta)
    w.add_layer_norm_rms_eps(s.norm_eps)
    w.add_vocab_size(s.vocab)
    types = {
        "f32": gguf.LlamaFileType.ALL_F32,
        "f16": gguf.LlamaFileType.MOSTLY_F16,
        "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    }
    w.add_file_type(types[kind])
    w.add_tokenizer_model("gpt2")
    w.add_tokenizer_pre("qwen2")
    w.add_token_list(vocabulary.tokens)
    control, normal = int(gguf.TokenType.CONTROL), int(gguf.TokenType.NORMAL)
    special = {END_ID, START_ID}
    w.add_token_types([control if i in special else normal for i in range(len(vocabulary.tokens))])
    w.add_token_merges(vocabulary.merges)
    w.add_bos_token_id(START_ID)
    w.add_eos_token_id(END_ID)
    w.add_add_bos_token(True)
    for ours, p in model.named_parameters():
        data = p.detach().float().cpu().numpy()
        if data.ndim == 2 and kind == "f16":
            w.add_tensor(gguf_name(ours), data.astype(np.float16))
        elif data.ndim == 2 and kind == "q8_0":
            packed = gguf.quants.quantize(data, gguf.GGMLQuantizationType.Q8_0)
            w.add_tensor(gguf_name(ours), packed, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
        else:
            w.add_tensor(gguf_name(ours), data)
    w.write_header_to_file()
    w.write_kv_data_to_file()
    w.write_tensors_to_file()
    w.close()
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _value(reader: gguf.GGUFReader, key: str) -> object:
    field = reader.get_field(key)
    if field is None:
        raise SystemExit(f"{key} is missing in the GGUF file")
    return field.contents()


def read_shape(reader: gguf.GGUFReader) -> Shape:
    def number(key: str) -> float:
        return float(str(_value(reader, f"qwen3.{key}")))

    def meant(key: str) -> float:
        """Stored as float32: the number that was meant."""
        return float(f"{number(key):.6g}")

    return Shape(
        n_layer=int(number("block_count")),
        d_model=int(number("embedding_length")),
        n_head=int(number("attention.head_count")),
        n_kv=int(number("attention.head_count_kv")),
        head_dim=int(number("attention.key_length")),
        d_ff=int(number("feed_forward_length")),
        vocab=len(_value(reader, "tokenizer.ggml.tokens")),  # type: ignore[arg-type]
        rope_theta=meant("rope.freq_base"),
        norm_eps=meant("attention.layer_norm_rms_epsilon"),
        n_ctx=int(number("context_length")),
    )


def read_vocabulary(reader: gguf.GGUFReader) -> Vocabulary:
    return Vocabulary(
        list(_value(reader, "tokenizer.ggml.tokens")),  # type: ignore[call-overload]
        list(_value(reader, "tokenizer.ggml.merges")),  # type: ignore[call-overload]
    )


def read_tensors(reader: gguf.GGUFReader) -> dict[str, Tensor]:
    """All tensors in float32, by llama.cpp's names."""
    return {
        t.name: torch.from_numpy(
            gguf.quants.dequantize(t.data, t.tensor_type).astype(np.float32)
        ).reshape(*(int(n) for n in reversed(t.shape)))
        for t in reader.tensors
    }


def load(path: Path) -> tuple[Model, Vocabulary]:
    """A model and its vocabulary from a file that `export` could have written."""
    reader = gguf.GGUFReader(path)
    model = Model(read_shape(reader))
    tensors = read_tensors(reader)
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(tensors[gguf_name(name)])
    return model, read_vocabulary(reader)
