"""T5 and mT5: one architecture, two vocabularies, and an output scale that mT5 lacks."""

from dataclasses import replace

from precision_search.model.families.base import ModelFamily, Parts, SizeNames, TokenRules

T5 = ModelFamily(
    model_type="t5",
    title="T5",
    classes=("T5ForConditionalGeneration", "T5WithLMHeadModel"),  # the second is an old name of the first
    model_class="transformers.T5ForConditionalGeneration",
    sizes=SizeNames(
        vocabulary="vocab_size",
        width="d_model",
        inner_width="d_ff",
        heads="num_heads",
        head_size="d_kv",
        encoder_layers="num_layers",
        decoder_layers="num_decoder_layers",
        positions=None,  # they are relative
    ),
    parts=Parts(
        encoder="encoder",
        decoder="decoder",
        output_projection="lm_head",
        output_bias=None,
        output_scale="scale_decoder_outputs",  # transformers 5.23: unless the config unties the embeddings or says no
    ),
    tokens=TokenRules(
        pad_token="<pad>",
        eos_token="</s>",
        pad_id=0,  # this and the next: the defaults of transformers' T5Config and MT5Config
        eos_id=1,
        usual_start_id=0,
        longest_input=512,  # what T5 was pre-trained with (Raffel et al. 2020, section 3.1.2)
        vocabulary_files=("spiece.model", "sentencepiece.bpe.model", "tokenizer.model", "vocab.json", "vocab.txt"),
        needs_no_file=("ByT5",),  # bytes are its tokens
        tokenizer_classes=("T5Tokenizer", "MT5Tokenizer"),
        is_rebuilt=True,
    ),
)

MT5 = replace(
    T5,
    model_type="mt5",
    classes=("MT5ForConditionalGeneration",),
    model_class="transformers.MT5ForConditionalGeneration",
    parts=replace(T5.parts, output_scale=None),  # transformers 5.23: mT5 never scales
)
