"""Foreign models with random weights: the published classes and layouts at tiny sizes."""

from pathlib import Path

import pytest
import torch
from foreign import restless, text_config


@pytest.fixture(scope="session")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE with RoBERTa's special tokens, learned from a few words."""
    from tokenizers import ByteLevelBPETokenizer
    from transformers import RobertaTokenizer

    words = ["a dog bark", "foot steps on gravel", "heavy rain on a roof", "someone using keyboard", "a man cough"]
    bpe = ByteLevelBPETokenizer()
    bpe.train_from_iterator(words * 3, 320, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"], show_progress=False)
    raw = tmp_path_factory.mktemp("bpe")
    bpe.save_model(str(raw))
    folder = tmp_path_factory.mktemp("tokenizer")
    RobertaTokenizer(str(raw / "vocab.json"), str(raw / "merges.txt"), model_max_length=32).save_pretrained(folder)
    return folder


def audio_config() -> dict[str, object]:
    """HTSAT on its own 256 x 256 picture, narrow."""
    return {
        "patch_embeds_hidden_size": 16,
        "depths": [2, 2],
        "num_attention_heads": [2, 4],
        "num_hidden_layers": 2,
        "hidden_size": 32,
        "projection_dim": 32,
    }


@pytest.fixture(scope="session")
def clap_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer_folder: Path) -> Path:
    """A transformers ClapModel folder, as laion/clap-htsat-unfused is one."""
    from transformers import AutoTokenizer, ClapConfig, ClapFeatureExtractor, ClapModel

    torch.manual_seed(1)
    config = ClapConfig(text_config=text_config(), audio_config=audio_config(), projection_dim=32)
    folder = tmp_path_factory.mktemp("clap")
    restless(ClapModel(config)).save_pretrained(folder)
    AutoTokenizer.from_pretrained(tokenizer_folder).save_pretrained(folder)
    ClapFeatureExtractor(frequency_min=50, frequency_max=14000, truncation="rand_trunc").save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def audioldm_folder(tmp_path_factory: pytest.TempPathFactory, clap_folder: Path) -> Path:
    """What cvssp/audioldm-s-full-v2 is in small, written by diffusers itself; its text tower is that of `clap_folder`."""
    from diffusers import AudioLDMPipeline, AutoencoderKL, DDIMScheduler, UNet2DConditionModel
    from transformers import AutoTokenizer, ClapModel, ClapTextModelWithProjection, SpeechT5HifiGan, SpeechT5HifiGanConfig

    torch.manual_seed(2)
    whole = ClapModel.from_pretrained(clap_folder)
    text = ClapTextModelWithProjection(whole.config.text_config)
    text.text_model.load_state_dict(whole.text_model.state_dict())
    text.text_projection.load_state_dict(whole.text_projection.state_dict())
    channels = (32, 64, 64)
    unet = UNet2DConditionModel(
        sample_size=8,
        in_channels=8,
        out_channels=8,
        block_out_channels=channels,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=channels,
        class_embed_type="simple_projection",
        projection_class_embeddings_input_dim=32,
        class_embeddings_concat=True,
    )
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        latent_channels=8,
        block_out_channels=(8, 16, 16),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        norm_num_groups=8,
        scaling_factor=0.9227914214134216,
    )
    vocoder = SpeechT5HifiGan(
        SpeechT5HifiGanConfig(
            model_in_dim=16,
            sampling_rate=16000,
            upsample_initial_channel=64,
            upsample_rates=[5, 4, 2, 2, 2],
            upsample_kernel_sizes=[16, 16, 8, 4, 4],
            normalize_before=False,
        )
    )
    for module in vocoder.modules():  # transformers' own start is silent
        if isinstance(module, torch.nn.Conv1d | torch.nn.ConvTranspose1d):
            module.reset_parameters()
    with torch.no_grad():  # loud, and far from deaf to condition and noise
        unet.class_embedding.weight.mul_(20)
        unet.conv_out.weight.mul_(2)
        vae.decoder.conv_out.weight.mul_(20)
        vocoder.conv_pre.weight.mul_(3)
        vocoder.conv_post.weight.mul_(20)
    scheduler = DDIMScheduler(
        beta_start=0.0015,
        beta_end=0.0195,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )
    pipe = AudioLDMPipeline(vae, text, AutoTokenizer.from_pretrained(clap_folder), unet, scheduler, vocoder)
    folder = tmp_path_factory.mktemp("audioldm")
    pipe.save_pretrained(folder)
    return folder
