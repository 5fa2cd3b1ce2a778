"""prompt -> condition: CLAP's text embedding, tuned for the diffusion model, and plain as the target of ranking."""

from pathlib import Path
from typing import Any

import torch

from foley_ray.checkpoint import load_part, read_info
from foley_ray.columns import CONDITION, PROMPT, TARGET, Batch, require
from foley_ray.errors import PromptError
from foley_ray.stages.familiar import Familiar


class ConditionStage:
    """Text embedding per distinct prompt; the tuning layer serves generation only, ranking compares with CLAP's own."""

    requires = (PROMPT,)
    provides = (CONDITION, TARGET)

    def __init__(self, model: Path, device: str = "cpu", clap: Any = None):
        """`clap` is the model's, if it is loaded already: one serves all stages of a process."""
        info = read_info(model, needs=("clap",))
        self.device = torch.device(device)
        self.clap = (clap or load_part(model, "clap")).to(self.device)
        self.tuning = load_part(model, "tuning").to(self.device) if "tuning" in info.parts else None
        self.familiar = Familiar(info.sounds, self.clap.text_embed)

    @torch.inference_mode()
    def __call__(self, batch: Batch) -> Batch:
        """Raises PromptError for an empty or over-long prompt, before anything is computed."""
        require(batch, self.requires, "condition")
        prompts = [str(prompt) for prompt in batch[PROMPT.name]]
        distinct = list(dict.fromkeys(prompts))
        if any(not prompt.strip() for prompt in distinct):
            raise PromptError("a prompt is empty: say what the sound should be, such as 'a dog bark'")
        target_ND = self.embed(distinct)
        condition_ND = self.tuning(target_ND) if self.tuning is not None else target_ND
        row = [distinct.index(prompt) for prompt in prompts]
        return {
            **batch,
            CONDITION.name: condition_ND.cpu().numpy()[row],
            TARGET.name: target_ND.cpu().numpy()[row],
        }

    def embed(self, texts: list[str]) -> torch.Tensor:
        """(N, D) plain text embeddings. One at a time: a text's embedding must not depend on its batch mates, to the bit."""
        return torch.cat([self.clap.text_embed([text]) for text in texts])
