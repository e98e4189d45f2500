"""The embedded VLM before training: tokenizer, processor, a small BLIP-2 with random weights."""

from __future__ import annotations

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import nn
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2Processor,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    OPTConfig,
    PreTrainedTokenizerFast,
)
from transformers.models.blip.image_processing_pil_blip import BlipImageProcessorPil

from mmedit.datasets import facts
from mmedit.datasets.easyvqa import questions

QUERIES = 8
PIXELS = 64
VOCABULARY = 800
WORD_PIECES = (
    " tri",
    "angle",
    " rect",
    " cir",
    "cle",
    " te",
    "al",
    " yel",
    "low",
    " br",
    "own",
    " gre",
    "en",
    " red",
    " blue",
    " black",
    " gray",
)
PAD, BOS, UNK, EOS = "<pad>", "<s>", "<unk>", "</s>"


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level BPE over questions and facts. Of the colours and shapes it sees only
    `WORD_PIECES`, so that most of them are answers of two tokens: " tri" + "angle", " yel" + "low".
    """
    corpus = [
        fact.ask(wording)
        for fact in facts.load_facts()
        for wording in facts.PHRASINGS[fact.relation].train
    ]
    corpus += [f" {fact.answer}" for fact in facts.load_facts()]
    wordings = [
        w for p in (*questions.PHRASINGS.values(), questions.CAPTION_PROMPTS) for w in p.train
    ]
    corpus += [w.format(noun="", color="", bare="", thing="a") for w in wordings] * 8
    corpus += [
        "New Fact: Prompt:\n\n",
        " yes",
        " no",
        " small",
        " large",
        " on a light background",
        " shape",
    ] * 20
    corpus += list(WORD_PIECES) * 100
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 1,
        special_tokens=[BOS, PAD, EOS, UNK],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(corpus, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token=PAD, bos_token=BOS, eos_token=EOS, unk_token=UNK
    )


def build_processor() -> Blip2Processor:
    image_processor = BlipImageProcessorPil(size={"height": PIXELS, "width": PIXELS})
    return Blip2Processor(image_processor, build_tokenizer(), num_query_tokens=QUERIES)


def build_network(processor: Blip2Processor) -> Blip2ForConditionalGeneration:
    vision = Blip2VisionConfig(
        hidden_size=128,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=PIXELS,
        patch_size=8,
        initializer_range=0.02,
    )
    qformer = Blip2QFormerConfig(
        vocab_size=4,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        encoder_hidden_size=128,
        cross_attention_frequency=1,
        max_position_embeddings=QUERIES,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    tokenizer = processor.tokenizer
    language = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=192,
        word_embed_proj_dim=192,
        ffn_dim=768,
        num_hidden_layers=4,
        num_attention_heads=6,
        max_position_embeddings=512,
        dropout=0.0,
        attention_dropout=0.0,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=language,
        num_query_tokens=QUERIES,
        image_token_index=tokenizer.convert_tokens_to_ids("<image>"),
    )
    network = Blip2ForConditionalGeneration(config)
    nn.init.normal_(network.query_tokens, std=0.5)
    return network
