"""Makes a tiny Llama with random weights and a tokenizer of its own, without asking a hub for anything.

usage: make_model.py FOLDER
"""

import itertools
import pathlib
import sys

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging

VOCABULARY = 1024
HIDDEN = 64
LAYERS = 2
HEADS = 2
CONTEXT = 4096
SPECIAL = ["<unk>", "<s>", "</s>"]
SYLLABLES = ["ba", "do", "fi", "ga", "ku", "le", "mo", "ni", "pa", "ro", "su", "ti", "va", "zo"]


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs, trained on made-up words, so that it takes any text."""
    base = Tokenizer(models.BPE())
    base.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    base.decoder = decoders.ByteLevel()
    words = ["".join(parts) for parts in itertools.product(SYLLABLES, repeat=3)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    base.train_from_iterator([" ".join(words)], trainer)
    unk, bos, eos = SPECIAL
    fast = PreTrainedTokenizerFast(tokenizer_object=base, unk_token=unk, bos_token=bos, eos_token=eos)
    fast.chat_template = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}assistant: "
    return fast


def model() -> LlamaForCausalLM:
    """Random weights from a fixed seed: the same model everywhere."""
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=2 * HIDDEN,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=HEADS,
        max_position_embeddings=CONTEXT,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    return LlamaForCausalLM(config).to(torch.bfloat16)


def main() -> None:
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    logging.disable_progress_bar()
    folder = pathlib.Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer().save_pretrained(folder)
    made = model()
    made.save_pretrained(folder, safe_serialization=True)
    print(f"{folder}: {sum(weights.numel() for weights in made.parameters())} parameters", file=sys.stderr)


if __name__ == "__main__":
    main()
