# SPDX-License-Identifier: Apache-2.0
"""Fine-tune a language model's adapters with TRL and SAM. What differs has `# SAM`.

python scripts/examples/trl_sft_lora.py      # pip install trl peft
"""

import random

from datasets import Dataset
from peft import LoraConfig
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, set_seed
from trl import SFTConfig, SFTTrainer

from hf_sam import SAMConfig, SAMTrainerMixin  # SAM


class SAMSFTTrainer(SAMTrainerMixin, SFTTrainer):  # SAM: the mixin comes first
    """TRL's trainer, sharpness-aware."""


ARTICLES, NOUNS, VERBS, SIZES = ["the", "a"], ["cat", "dog", "bird"], ["sees", "hears", "likes"], ["small", "big"]
WORDS = ["<pad>", "<unk>", "</s>", *ARTICLES, *NOUNS, *VERBS, *SIZES]
inner = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", unk_token="<unk>", eos_token="</s>")


def sentence() -> str:
    return " ".join(map(random.choice, (ARTICLES, SIZES, NOUNS, VERBS, ARTICLES, SIZES, NOUNS)))


set_seed(0)
data = Dataset.from_dict({"text": [sentence() for _ in range(384)]})
model = LlamaForCausalLM(
    LlamaConfig(
        vocab_size=len(WORDS), hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64,
        pad_token_id=0, bos_token_id=None, eos_token_id=2,
    )
)  # fmt: skip
args = SFTConfig(
    "outputs/examples/trl_sft_lora", num_train_epochs=4, per_device_train_batch_size=16, learning_rate=5e-2,
    logging_steps=24, save_strategy="no", use_cpu=True, bf16=False, report_to="none",
)  # fmt: skip
trainer = SAMSFTTrainer(  # SAM: SFTTrainer(
    model,
    args,
    train_dataset=data,
    processing_class=tokenizer,
    peft_config=LoraConfig(r=4, target_modules="all-linear", task_type="CAUSAL_LM"),
    sam_config=SAMConfig.preset("lora"),  # SAM: on the adapters, once the model memorises
)
trainer.train()
losses = [log["loss"] for log in trainer.state.log_history if "loss" in log]
print(f"loss: {losses[0]:.2f} at first, {losses[-1]:.2f} at last")
