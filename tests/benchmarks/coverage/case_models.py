"""Small models in the layouts that the Hub has, with random weights: of transformers, timm, diffusers, and by name and
shape of libraries and remote code that is not installed. Each entry of `MODELS` makes one from a seed.

diffusers and ultralytics are no dependencies of this package: install them beside (`pip install --no-deps --target
FOLDER diffusers ultralytics`, PYTHONPATH=FOLDER).
"""

# ruff: noqa: C408, E741, SIM905 (tables as one reads them)
from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

Tensors = dict[str, torch.Tensor]
Make = Callable[[int], Tensors]
# fmt: off
H, I, L, V = 64, 256, 3, 500
LM = dict(hidden_size=H, intermediate_size=I, num_hidden_layers=L, num_attention_heads=4, vocab_size=V, max_position_embeddings=64)
KV = LM | dict(num_key_value_heads=2)
PAD = dict(pad_token_id=0, bos_token_id=1, eos_token_id=2)
T5 = dict(d_model=H, d_ff=I, d_kv=16, num_layers=2, num_decoder_layers=2, num_heads=4, vocab_size=V)
W2 = dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, vocab_size=40, conv_dim=[32] * 3, conv_stride=[5,2,2], conv_kernel=[10,3,2], num_feat_extract_layers=3, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4)
VI = dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8)
TX = dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, vocab_size=V)
CLIP = dict(text_config=TX | dict(max_position_embeddings=16), vision_config=VI, projection_dim=32)
DE = dict(d_model=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4)
UNET = dict(sample_size=16, block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"), cross_attention_dim=32, attention_head_dim=4, layers_per_block=1)
VAE = dict(block_out_channels=(32, 64), down_block_types=("DownEncoderBlock2D",)*2, up_block_types=("UpDecoderBlock2D",)*2, layers_per_block=1, latent_channels=4)

TRANSFORMERS: dict[str, tuple[str, str, dict[str, Any]]] = {  # class, model type, configuration
    "Llama": ("LlamaForCausalLM", "llama", dict(**KV)),
    "Mistral": ("MistralForCausalLM", "mistral", dict(**KV)),
    "Qwen2": ("Qwen2ForCausalLM", "qwen2", dict(**KV)),
    "Qwen3": ("Qwen3ForCausalLM", "qwen3", dict(head_dim=16, **KV)),
    "Gemma2": ("Gemma2ForCausalLM", "gemma2", dict(head_dim=16, **KV)),
    "Gemma3 text": ("Gemma3ForCausalLM", "gemma3_text", dict(head_dim=16, **KV)),
    "Phi-2": ("PhiForCausalLM", "phi", dict(**LM)),
    "Phi-3 (qkv_proj, gate_up_proj)": ("Phi3ForCausalLM", "phi3", dict(**(KV | PAD))),
    "GPT-2 (Conv1D)": ("GPT2LMHeadModel", "gpt2", dict(n_embd=H, n_layer=L, n_head=4, vocab_size=V, n_positions=64)),
    "StarCoder gpt_bigcode": ("GPTBigCodeForCausalLM", "gpt_bigcode", dict(n_embd=H, n_layer=L, n_head=4, vocab_size=V, n_positions=64)),
    "GPT-Neo": ("GPTNeoForCausalLM", "gpt_neo", dict(hidden_size=H, num_layers=2, num_heads=4, vocab_size=V, attention_types=[[["global", "local"], 1]])),
    "GPT-J": ("GPTJForCausalLM", "gptj", dict(n_embd=H, n_layer=L, n_head=4, vocab_size=V, rotary_dim=8)),
    "CodeGen": ("CodeGenForCausalLM", "codegen", dict(n_embd=H, n_layer=L, n_head=4, vocab_size=V, rotary_dim=8)),
    "GPT-NeoX / Pythia": ("GPTNeoXForCausalLM", "gpt_neox", dict(**LM)),
    "Falcon-7B (fused, multi-query)": ("FalconForCausalLM", "falcon", dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=4, vocab_size=V)),
    "Falcon-40B (new decoder)": ("FalconForCausalLM", "falcon", dict(hidden_size=H, num_hidden_layers=L, num_attention_heads=4, vocab_size=V, new_decoder_architecture=True, num_kv_heads=2)),
    "BLOOM": ("BloomForCausalLM", "bloom", dict(hidden_size=H, n_layer=L, n_head=4, vocab_size=V)),
    "MPT (Wqkv)": ("MptForCausalLM", "mpt", dict(d_model=H, n_layers=L, n_heads=4, vocab_size=V, max_seq_len=64)),
    "OPT": ("OPTForCausalLM", "opt", dict(hidden_size=H, ffn_dim=I, num_hidden_layers=L, num_attention_heads=4, vocab_size=V, word_embed_proj_dim=H)),
    "StableLM": ("StableLmForCausalLM", "stablelm", dict(**KV)),
    "Cohere": ("CohereForCausalLM", "cohere", dict(**KV)),
    "OLMo2": ("Olmo2ForCausalLM", "olmo2", dict(**(KV | PAD))),
    "Starcoder2 (c_fc/c_proj Linear)": ("Starcoder2ForCausalLM", "starcoder2", dict(**KV)),
    "Nemotron (up/down)": ("NemotronForCausalLM", "nemotron", dict(**KV)),
    "DBRX (fused experts)": ("DbrxForCausalLM", "dbrx", dict(d_model=H, n_heads=4, n_layers=L, vocab_size=V, max_seq_len=64, ffn_config=dict(ffn_hidden_size=128, moe_num_experts=4, moe_top_k=1, hidden_size=H), attn_config=dict(kv_n_heads=2, clip_qkv=8, rope_theta=10000.0))),
    "Mixtral": ("MixtralForCausalLM", "mixtral", dict(num_local_experts=4, **(KV | dict(intermediate_size=128)))),
    "Qwen2-MoE": ("Qwen2MoeForCausalLM", "qwen2_moe", dict(num_experts=4, moe_intermediate_size=64, shared_expert_intermediate_size=128, **KV)),
    "Qwen3-MoE": ("Qwen3MoeForCausalLM", "qwen3_moe", dict(num_experts=8, num_experts_per_tok=2, moe_intermediate_size=64, head_dim=16, **KV)),
    "Qwen3-Next": ("Qwen3NextForCausalLM", "qwen3_next", dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, shared_expert_intermediate_size=64, head_dim=16, linear_num_value_heads=4, linear_num_key_heads=2, linear_key_head_dim=16, linear_value_head_dim=16, **(KV | dict(num_hidden_layers=4)))),
    "DeepSeek-V3": ("DeepseekV3ForCausalLM", "deepseek_v3", dict(n_routed_experts=8, n_group=2, topk_group=1, num_experts_per_tok=2, moe_intermediate_size=64, first_k_dense_replace=1, q_lora_rank=32, kv_lora_rank=16, qk_rope_head_dim=8, qk_nope_head_dim=8, v_head_dim=16, **LM)),
    "gpt-oss, bf16 (E, in, out interleaved)": ("GptOssForCausalLM", "gpt_oss", dict(num_local_experts=4, num_experts_per_tok=2, head_dim=16, **(KV | dict(intermediate_size=64, num_hidden_layers=2)))),
    "Llama 4 text": ("Llama4ForCausalLM", "llama4_text", dict(num_local_experts=4, intermediate_size_mlp=128, head_dim=16, hidden_size=H, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=V, interleave_moe_layer_step=1)),
    "PhiMoE": ("PhimoeForCausalLM", "phimoe", dict(num_local_experts=4, **(KV | dict(intermediate_size=64)))),
    "GraniteMoE": ("GraniteMoeForCausalLM", "granitemoe", dict(num_local_experts=4, **(KV | dict(intermediate_size=64)))),
    "Jamba": ("JambaForCausalLM", "jamba", dict(num_experts=2, mamba_d_state=8, mamba_dt_rank=8, use_mamba_kernels=False, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1, **(KV | dict(num_hidden_layers=4)))),
    "Mamba": ("MambaForCausalLM", "mamba", dict(hidden_size=H, num_hidden_layers=L, vocab_size=V, state_size=8)),
    "Mamba2": ("Mamba2ForCausalLM", "mamba2", dict(hidden_size=H, num_hidden_layers=L, vocab_size=V, state_size=16, num_heads=8, head_dim=16, n_groups=1)),
    "RWKV-4": ("RwkvForCausalLM", "rwkv", dict(hidden_size=H, num_hidden_layers=L, vocab_size=V, context_length=64)),
    "RecurrentGemma": ("RecurrentGemmaForCausalLM", "recurrent_gemma", dict(lru_width=H, **KV)),
    "BERT": ("BertForMaskedLM", "bert", dict(**LM)),
    "RoBERTa": ("RobertaForMaskedLM", "roberta", dict(**LM)),
    "XLM-R classifier": ("XLMRobertaForSequenceClassification", "xlm-roberta", dict(**LM)),
    "ELECTRA": ("ElectraForPreTraining", "electra", dict(**LM, embedding_size=H)),
    "MPNet": ("MPNetForMaskedLM", "mpnet", dict(**LM)),
    "DeBERTa-v2": ("DebertaV2ForSequenceClassification", "deberta-v2", dict(**LM)),
    "LayoutLM": ("LayoutLMForTokenClassification", "layoutlm", dict(**LM)),
    "ESM-2": ("EsmForMaskedLM", "esm", dict(**LM, pad_token_id=0)),
    "Nyströmformer": ("NystromformerForMaskedLM", "nystromformer", dict(**LM)),
    "ModernBERT (Wi fused GLU)": ("ModernBertForMaskedLM", "modernbert", dict(**LM, pad_token_id=0)),
    "CamemBERT": ("CamembertForMaskedLM", "camembert", dict(**LM)),
    "Nomic-BERT (transformers)": ("NomicBertModel", "nomic_bert", dict(**LM, pad_token_id=0)),
    "SqueezeBERT": ("SqueezeBertForMaskedLM", "squeezebert", dict(**LM, embedding_size=H)),
    "MobileBERT": ("MobileBertForMaskedLM", "mobilebert", dict(**LM, embedding_size=H, intra_bottleneck_size=64, true_hidden_size=64)),
    "DistilBERT": ("DistilBertForSequenceClassification", "distilbert", dict(dim=H, hidden_dim=I, n_layers=L, n_heads=4, vocab_size=V)),
    "ALBERT (one shared layer)": ("AlbertForMaskedLM", "albert", dict(embedding_size=H, **LM)),
    "XLNet": ("XLNetLMHeadModel", "xlnet", dict(d_model=H, d_inner=I, n_layer=L, n_head=4, vocab_size=V)),
    "Longformer": ("LongformerForMaskedLM", "longformer", dict(attention_window=8, **LM)),
    "T5": ("T5ForConditionalGeneration", "t5", dict(**T5)),
    "mT5 / Flan-T5 (gated)": ("MT5ForConditionalGeneration", "mt5", dict(feed_forward_proj="gated-gelu", **T5)),
    "BART": ("BartForConditionalGeneration", "bart", dict(d_model=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V)),
    "Marian": ("MarianMTModel", "marian", dict(d_model=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V, pad_token_id=0, decoder_start_token_id=0)),
    "M2M100 / NLLB": ("M2M100ForConditionalGeneration", "m2m_100", dict(d_model=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V)),
    "Whisper": ("WhisperForConditionalGeneration", "whisper", dict(d_model=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V, num_mel_bins=16, max_source_positions=50, max_target_positions=32, pad_token_id=0, bos_token_id=0, eos_token_id=0, decoder_start_token_id=0)),
    "wav2vec2": ("Wav2Vec2ForCTC", "wav2vec2", dict(**W2)),
    "HuBERT": ("HubertForCTC", "hubert", dict(**W2)),
    "WavLM": ("WavLMForCTC", "wavlm", dict(**W2)),
    "Wav2Vec2-BERT": ("Wav2Vec2BertForCTC", "wav2vec2-bert", dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, vocab_size=40, feature_projection_input_dim=32)),
    "SpeechT5": ("SpeechT5ForTextToSpeech", "speecht5", dict(hidden_size=H, encoder_layers=2, decoder_layers=2, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=50)),
    "VITS / MMS-TTS (Conv1d ffn)": ("VitsModel", "vits", dict(hidden_size=H, ffn_dim=I, num_hidden_layers=2, vocab_size=40, flow_size=H, spectrogram_bins=65, upsample_initial_channel=64, wavenet_dilation_rate=1, posterior_encoder_num_wavenet_layers=2, prior_encoder_num_flows=2, prior_encoder_num_wavenet_layers=2, duration_predictor_num_flows=1)),
    "MusicGen decoder": ("MusicgenForCausalLM", "musicgen_decoder", dict(hidden_size=H, ffn_dim=I, num_hidden_layers=2, num_attention_heads=4, vocab_size=64)),
    "EnCodec": ("EncodecModel", "encodec", dict(num_filters=8, hidden_size=64, codebook_dim=64, codebook_size=32, upsampling_ratios=[2, 2], target_bandwidths=[1.5])),
    "Audio Spectrogram Transformer": ("ASTForAudioClassification", "audio-spectrogram-transformer", dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, max_length=64, num_mel_bins=32)),
    "CLIP": ("CLIPModel", "clip", dict(**CLIP)),
    "SigLIP": ("SiglipModel", "siglip", dict(text_config=TX | dict(max_position_embeddings=16), vision_config=VI)),
    "ViT": ("ViTForImageClassification", "vit", dict(**VI)),
    "DeiT": ("DeiTForImageClassification", "deit", dict(**VI)),
    "BEiT": ("BeitForImageClassification", "beit", dict(**VI)),
    "DINOv2": ("Dinov2Model", "dinov2", dict(**({k: v for k, v in VI.items() if k != "intermediate_size"} | dict(mlp_ratio=4)))),
    "DINOv2 SwiGLU (giant)": ("Dinov2Model", "dinov2", dict(use_swiglu_ffn=True, **({k: v for k, v in VI.items() if k != "intermediate_size"} | dict(mlp_ratio=4)))),
    "DINOv3 ViT": ("DINOv3ViTModel", "dinov3_vit", dict(**VI)),
    "Swin": ("SwinForImageClassification", "swin", dict(embed_dim=32, depths=[2, 2], num_heads=[2, 4], image_size=32, patch_size=2, window_size=4)),
    "Swinv2": ("Swinv2ForImageClassification", "swinv2", dict(embed_dim=32, depths=[2, 2], num_heads=[2, 4], image_size=32, patch_size=2, window_size=4)),
    "ConvNeXt": ("ConvNextForImageClassification", "convnext", dict(hidden_sizes=[32, 64], depths=[1, 2], num_stages=2)),
    "ConvNeXtV2": ("ConvNextV2ForImageClassification", "convnextv2", dict(hidden_sizes=[32, 64], depths=[1, 2], num_stages=2)),
    "ResNet-18-like (basic)": ("ResNetForImageClassification", "resnet", dict(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], layer_type="basic")),
    "ResNet-50-like (bottleneck)": ("ResNetForImageClassification", "resnet", dict(embedding_size=64, hidden_sizes=[128, 256], depths=[2, 2], layer_type="bottleneck")),
    "RegNet": ("RegNetForImageClassification", "regnet", dict(embedding_size=32, hidden_sizes=[32, 64], depths=[2, 2], groups_width=32)),
    "MobileNetV2": ("MobileNetV2ForImageClassification", "mobilenet_v2", dict()),
    "EfficientNet-B0": ("EfficientNetForImageClassification", "efficientnet", dict(width_coefficient=1.0, depth_coefficient=1.0, hidden_dim=1280, image_size=64)),
    "SegFormer (MiT)": ("SegformerForSemanticSegmentation", "segformer", dict(hidden_sizes=[32, 64, 80, 96], depths=[1, 1, 1, 1], decoder_hidden_size=64, num_attention_heads=[1, 2, 2, 4])),
    "PVTv2": ("PvtV2ForImageClassification", "pvt_v2", dict(hidden_sizes=[32, 64, 80, 96], depths=[1, 1, 1, 1])),
    "MobileViT": ("MobileViTForImageClassification", "mobilevit", dict()),
    "SAM": ("SamModel", "sam", dict(vision_config=dict(hidden_size=H, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=16, mlp_dim=256, output_channels=32, global_attn_indexes=[1]), prompt_encoder_config=dict(hidden_size=32, image_size=64, patch_size=16, mask_input_channels=16), mask_decoder_config=dict(hidden_size=32, mlp_dim=128, num_attention_heads=4, iou_head_hidden_dim=64))),
    "DETR (resnet backbone)": ("DetrForObjectDetection", "detr", dict(use_timm_backbone=False, use_pretrained_backbone=False, backbone_config=dict(model_type="resnet", embedding_size=32, hidden_sizes=[32, 64], depths=[1, 1], layer_type="basic", out_features=["stage2"]), **DE)),
    "RT-DETR": ("RTDetrForObjectDetection", "rt_detr", dict(d_model=64, encoder_hidden_dim=64, encoder_ffn_dim=128, decoder_ffn_dim=128, decoder_layers=2, decoder_attention_heads=4, encoder_attention_heads=4)),
    "YOLOS": ("YolosForObjectDetection", "yolos", dict(**(VI | dict(image_size=[32, 32])))),
    "DPT / Depth Anything": ("DepthAnythingForDepthEstimation", "depth_anything", dict(backbone_config=dict(model_type="dinov2", hidden_size=H, num_hidden_layers=4, num_attention_heads=4, image_size=28, patch_size=14, out_indices=[1, 2, 3, 4], apply_layernorm=True, reshape_hidden_states=False), reassemble_hidden_size=H, neck_hidden_sizes=[16, 32, 64, 64], fusion_hidden_size=32)),
    "Mask2Former": ("Mask2FormerForUniversalSegmentation", "mask2former", dict(hidden_dim=64, feature_size=64, mask_feature_size=64, encoder_layers=1, decoder_layers=2, encoder_feedforward_dim=128, dim_feedforward=128, num_attention_heads=4, backbone_config=dict(model_type="swin", embed_dim=32, depths=[1, 1, 1, 1], num_heads=[2, 2, 2, 2], image_size=64, window_size=4, out_features=["stage1", "stage2", "stage3", "stage4"]))),
    "ViTMAE": ("ViTMAEForPreTraining", "vit_mae", dict(decoder_hidden_size=H, decoder_intermediate_size=I, decoder_num_hidden_layers=1, decoder_num_attention_heads=4, **VI)),
    "VideoMAE": ("VideoMAEForVideoClassification", "videomae", dict(num_frames=4, **VI)),
    "BLIP": ("BlipForConditionalGeneration", "blip", dict(text_config=TX | dict(encoder_hidden_size=H, projection_dim=32, max_position_embeddings=32), vision_config=VI, projection_dim=32)),
    "BLIP-2": ("Blip2ForConditionalGeneration", "blip-2", dict(vision_config=VI, qformer_config=dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, encoder_hidden_size=H, vocab_size=V), text_config=dict(model_type="opt", hidden_size=H, ffn_dim=I, num_hidden_layers=2, num_attention_heads=4, vocab_size=V, word_embed_proj_dim=H), num_query_tokens=4)),
    "LLaVA": ("LlavaForConditionalGeneration", "llava", dict(text_config=dict(model_type="llama", **KV), vision_config=dict(model_type="clip_vision_model", **VI))),
    "Qwen2-VL": ("Qwen2VLForConditionalGeneration", "qwen2_vl", dict(text_config=dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}, **KV), vision_config=dict(depth=2, embed_dim=H, hidden_size=H, num_heads=4, mlp_ratio=4, patch_size=8))),
    "Qwen2.5-VL": ("Qwen2_5_VLForConditionalGeneration", "qwen2_5_vl", dict(text_config=dict(rope_parameters={"rope_type": "default", "mrope_section": [2, 3, 3], "rope_theta": 1e4}, **KV), vision_config=dict(depth=2, hidden_size=H, out_hidden_size=H, num_heads=4, intermediate_size=I, patch_size=8, fullatt_block_indexes=[1]))),
    "Qwen3-VL": ("Qwen3VLForConditionalGeneration", "qwen3_vl", dict(text_config=dict(head_dim=16, **KV), vision_config=dict(depth=2, hidden_size=H, out_hidden_size=H, num_heads=4, intermediate_size=I, patch_size=8, deepstack_visual_indexes=[0]))),
    "PaliGemma": ("PaliGemmaForConditionalGeneration", "paligemma", dict(text_config=dict(model_type="gemma", head_dim=16, **KV), vision_config=dict(model_type="siglip_vision_model", projection_dim=H, **VI), projection_dim=H)),
    "Gemma 3 multimodal": ("Gemma3ForConditionalGeneration", "gemma3", dict(text_config=dict(head_dim=16, **KV), vision_config=VI, mm_tokens_per_image=4)),
    "Idefics3 / SmolVLM": ("Idefics3ForConditionalGeneration", "idefics3", dict(text_config=dict(model_type="llama", **(KV | PAD)), vision_config=VI, scale_factor=2)),
    "InternVL (transformers)": ("InternVLForConditionalGeneration", "internvl", dict(text_config=dict(model_type="qwen2", **KV), vision_config=VI | dict(image_size=[32, 32], patch_size=[8, 8]))),
    "Pixtral / Mistral3": ("Mistral3ForConditionalGeneration", "mistral3", dict(text_config=dict(model_type="mistral", **KV), vision_config=dict(model_type="pixtral", head_dim=16, **VI))),
    "TrOCR (vision encoder-decoder)": ("VisionEncoderDecoderModel", "vision-encoder-decoder", dict(encoder=dict(model_type="vit", **VI), decoder=dict(model_type="trocr", d_model=H, decoder_layers=2, decoder_ffn_dim=I, decoder_attention_heads=4, vocab_size=V))),
    "Florence-2": ("Florence2ForConditionalGeneration", "florence2", dict(text_config=dict(model_type="bart", d_model=H, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V), vision_config=dict(embed_dim=[32, 64, 64, 64], num_heads=[2, 4, 4, 4], num_groups=[2, 4, 4, 4], depths=[1, 1, 1, 1], projection_dim=H))),
    "Chronos-like time series: PatchTST": ("PatchTSTForPrediction", "patchtst", dict(d_model=H, ffn_dim=I, num_hidden_layers=2, num_attention_heads=4, num_input_channels=2, context_length=32, patch_length=8, prediction_length=8)),
    "TimesFM": ("TimesFmModelForPrediction", "timesfm", dict(hidden_size=H, intermediate_size=I, num_hidden_layers=2, num_attention_heads=4, head_dim=16, horizon_length=16, context_length=64)),
    "Decision Transformer": ("DecisionTransformerModel", "decision_transformer", dict(hidden_size=H, n_layer=2, n_head=4)),
    "Blenderbot-small": ("BlenderbotSmallForConditionalGeneration", "blenderbot-small", dict(d_model=H, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=I, decoder_ffn_dim=I, encoder_attention_heads=4, decoder_attention_heads=4, vocab_size=V)),
    "Zamba2": ("Zamba2ForCausalLM", "zamba2", dict(**(KV | dict(num_hidden_layers=4, layers_block_type=["mamba", "hybrid", "mamba", "mamba"], mamba_d_state=16, n_mamba_heads=8, num_mem_blocks=1, use_mem_rope=True, adapter_rank=8, hybrid_layer_ids=[1])))),
    "Nemotron-H": ("NemotronHForCausalLM", "nemotron_h", dict(**(KV | dict(head_dim=16)))),
    "LFM2": ("Lfm2ForCausalLM", "lfm2", dict(**KV)),
    "GLM-4 (fused gate_up)": ("Glm4ForCausalLM", "glm4", dict(head_dim=16, pad_token_id=0, **KV)),
    "GLM-4.5 MoE": ("Glm4MoeForCausalLM", "glm4_moe", dict(n_routed_experts=4, num_experts_per_tok=2, moe_intermediate_size=64, first_k_dense_replace=1, head_dim=16, **KV)),
    "Switch Transformers": ("SwitchTransformersForConditionalGeneration", "switch_transformers", dict(num_experts=4, **(T5 | dict(num_sparse_encoder_layers=1, num_sparse_decoder_layers=1)))),
    "DINO-era Perceiver": ("PerceiverForMaskedLM", "perceiver", dict(d_model=H, d_latents=H, num_latents=8, num_blocks=1, num_self_attends_per_block=2, num_self_attention_heads=4, num_cross_attention_heads=4, vocab_size=262, max_position_embeddings=32)),
    "FNet": ("FNetForMaskedLM", "fnet", dict(**LM)),
    "Reformer": ("ReformerModelWithLMHead", "reformer", dict(attn_layers=["local", "lsh"], hidden_size=H, feed_forward_size=I, num_attention_heads=4, attention_head_size=16, vocab_size=V, axial_pos_shape=[4, 16], axial_pos_embds_dim=[32, 32], is_decoder=True, num_hashes=1)),
}


def layered(count: int, stem: dict[str, tuple[int, ...]], block: dict[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Shapes of a stem, and of blocks whose number stands where # is."""
    return stem | {name.replace("#", str(i)): shape for i in range(count) for name, shape in block.items()}


NAMED: dict[str, dict[str, tuple[int, ...]]] = {
    "Qwen-1 remote code (mlp.w1/w2/c_proj, attn.c_attn)": layered(L, {"transformer.wte.weight": (V, H), "lm_head.weight": (V, H), "transformer.ln_f.weight": (H,)},
        {"transformer.h.#.ln_1.weight": (H,), "transformer.h.#.attn.c_attn.weight": (3*H, H), "transformer.h.#.attn.c_attn.bias": (3*H,), "transformer.h.#.attn.c_proj.weight": (H, H), "transformer.h.#.ln_2.weight": (H,), "transformer.h.#.mlp.w1.weight": (I, H), "transformer.h.#.mlp.w2.weight": (I, H), "transformer.h.#.mlp.c_proj.weight": (H, I)}),
    "Baichuan (W_pack)": layered(L, {"model.embed_tokens.weight": (V, H), "lm_head.weight": (V, H), "model.norm.weight": (H,)},
        {"model.layers.#.self_attn.W_pack.weight": (3*H, H), "model.layers.#.self_attn.o_proj.weight": (H, H), "model.layers.#.mlp.gate_proj.weight": (I, H), "model.layers.#.mlp.up_proj.weight": (I, H), "model.layers.#.mlp.down_proj.weight": (H, I), "model.layers.#.input_layernorm.weight": (H,)}),
    "InternLM2 (wqkv, feed_forward.w1/w3/w2)": layered(L, {"model.tok_embeddings.weight": (V, H), "output.weight": (V, H), "model.norm.weight": (H,)},
        {"model.layers.#.attention.wqkv.weight": (2*H, H), "model.layers.#.attention.wo.weight": (H, H), "model.layers.#.feed_forward.w1.weight": (I, H), "model.layers.#.feed_forward.w3.weight": (I, H), "model.layers.#.feed_forward.w2.weight": (H, I), "model.layers.#.attention_norm.weight": (H,)}),
    "ChatGLM2/3, GLM-4-9b-chat remote (fused SwiGLU dense_h_to_4h)": layered(L, {"transformer.embedding.word_embeddings.weight": (V, H), "transformer.output_layer.weight": (V, H), "transformer.encoder.final_layernorm.weight": (H,)},
        {"transformer.encoder.layers.#.input_layernorm.weight": (H,), "transformer.encoder.layers.#.self_attention.query_key_value.weight": (2*H, H), "transformer.encoder.layers.#.self_attention.dense.weight": (H, H), "transformer.encoder.layers.#.mlp.dense_h_to_4h.weight": (2*I, H), "transformer.encoder.layers.#.mlp.dense_4h_to_h.weight": (H, I)}),
    "ChatGLM-6B v1 (dense_h_to_4h)": layered(L, {"transformer.word_embeddings.weight": (V, H), "lm_head.weight": (V, H)},
        {"transformer.layers.#.attention.query_key_value.weight": (3*H, H), "transformer.layers.#.attention.dense.weight": (H, H), "transformer.layers.#.mlp.dense_h_to_4h.weight": (I, H), "transformer.layers.#.mlp.dense_h_to_4h.bias": (I,), "transformer.layers.#.mlp.dense_4h_to_h.weight": (H, I)}),
    "Meta/Mistral consolidated (layers.N.feed_forward.w1)": layered(L, {"tok_embeddings.weight": (V, H), "output.weight": (V, H), "norm.weight": (H,)},
        {"layers.#.attention.wq.weight": (H, H), "layers.#.attention.wk.weight": (H//2, H), "layers.#.attention.wv.weight": (H//2, H), "layers.#.attention.wo.weight": (H, H), "layers.#.feed_forward.w1.weight": (I, H), "layers.#.feed_forward.w2.weight": (H, I), "layers.#.feed_forward.w3.weight": (I, H), "layers.#.attention_norm.weight": (H,)}),
    "state-spaces Mamba original (backbone.layers.N.mixer)": layered(L, {"backbone.embedding.weight": (V, H), "backbone.norm_f.weight": (H,)},
        {"backbone.layers.#.norm.weight": (H,), "backbone.layers.#.mixer.A_log": (2*H, 8), "backbone.layers.#.mixer.D": (2*H,), "backbone.layers.#.mixer.in_proj.weight": (4*H, H), "backbone.layers.#.mixer.conv1d.weight": (2*H, 1, 4), "backbone.layers.#.mixer.x_proj.weight": (20, 2*H), "backbone.layers.#.mixer.dt_proj.weight": (2*H, 4), "backbone.layers.#.mixer.dt_proj.bias": (2*H,), "backbone.layers.#.mixer.out_proj.weight": (H, 2*H)}),
    "RWKV-5/6/7 (blocks.N.ffn.key/value)": layered(L, {"emb.weight": (V, H), "head.weight": (V, H), "ln_out.weight": (H,)},
        {"blocks.#.ln1.weight": (H,), "blocks.#.att.receptance.weight": (H, H), "blocks.#.att.key.weight": (H, H), "blocks.#.att.value.weight": (H, H), "blocks.#.att.output.weight": (H, H), "blocks.#.att.gate.weight": (H, H), "blocks.#.ffn.key.weight": (I, H), "blocks.#.ffn.value.weight": (H, I), "blocks.#.ffn.receptance.weight": (H, H)}),
    "nomic-bert remote (mlp.fc11/fc12/fc2, attn.Wqkv)": layered(L, {"embeddings.word_embeddings.weight": (V, H), "emb_ln.weight": (H,)},
        {"encoder.layers.#.attn.Wqkv.weight": (3*H, H), "encoder.layers.#.attn.out_proj.weight": (H, H), "encoder.layers.#.mlp.fc11.weight": (I, H), "encoder.layers.#.mlp.fc12.weight": (I, H), "encoder.layers.#.mlp.fc2.weight": (H, I), "encoder.layers.#.norm1.weight": (H,)}),
    "jina-bert-v2 remote (mlp.gated_layers, mlp.wo)": layered(L, {"embeddings.word_embeddings.weight": (V, H)},
        {"encoder.layer.#.attention.self.query.weight": (H, H), "encoder.layer.#.attention.self.key.weight": (H, H), "encoder.layer.#.attention.self.value.weight": (H, H), "encoder.layer.#.attention.output.dense.weight": (H, H), "encoder.layer.#.mlp.gated_layers.weight": (2*I, H), "encoder.layer.#.mlp.wo.weight": (H, I), "encoder.layer.#.mlp.wo.bias": (H,)}),
    "jina-embeddings-v3 / flash XLM-R (mixer.Wqkv, mlp.fc1)": layered(L, {"roberta.embeddings.word_embeddings.weight": (V, H)},
        {"roberta.encoder.layers.#.mixer.Wqkv.weight": (3*H, H), "roberta.encoder.layers.#.mixer.out_proj.weight": (H, H), "roberta.encoder.layers.#.mlp.fc1.weight": (I, H), "roberta.encoder.layers.#.mlp.fc2.weight": (H, I), "roberta.encoder.layers.#.norm1.weight": (H,)}),
    "gte-v1.5 / mGTE remote 'new' (mlp.up_gate_proj)": layered(L, {"embeddings.word_embeddings.weight": (V, H)},
        {"encoder.layer.#.attention.qkv_proj.weight": (3*H, H), "encoder.layer.#.attention.o_proj.weight": (H, H), "encoder.layer.#.mlp.up_gate_proj.weight": (2*I, H), "encoder.layer.#.mlp.down_proj.weight": (H, I), "encoder.layer.#.attn_ln.weight": (H,)}),
    "OpenELM (ffn.proj_1 fused GLU)": layered(L, {"transformer.token_embeddings.weight": (V, H), "transformer.norm.weight": (H,)},
        {"transformer.layers.#.attn.qkv_proj.weight": (3*H, H), "transformer.layers.#.attn.out_proj.weight": (H, H), "transformer.layers.#.ffn.proj_1.weight": (2*I, H), "transformer.layers.#.ffn.proj_2.weight": (H, I), "transformer.layers.#.attn_norm.weight": (H,)}),
    "nanoGPT / Linear GPT-2 (c_fc taller)": layered(L, {"transformer.wte.weight": (V, H), "transformer.wpe.weight": (64, H), "transformer.ln_f.weight": (H,)},
        {"transformer.h.#.ln_1.weight": (H,), "transformer.h.#.attn.c_attn.weight": (3*H, H), "transformer.h.#.attn.c_proj.weight": (H, H), "transformer.h.#.mlp.c_fc.weight": (4*H, H), "transformer.h.#.mlp.c_proj.weight": (H, 4*H)}),
    "OpenAI Whisper (blocks.N.mlp.0/2)": layered(2, {"encoder.conv1.weight": (H, 16, 3), "encoder.conv2.weight": (H, H, 3), "decoder.token_embedding.weight": (V, H), "decoder.positional_embedding": (32, H)},
        {f"{s}.blocks.#.{n}": sh for s in ("encoder", "decoder") for n, sh in {"attn.query.weight": (H, H), "attn.key.weight": (H, H), "attn.value.weight": (H, H), "attn.out.weight": (H, H), "mlp.0.weight": (I, H), "mlp.0.bias": (I,), "mlp.2.weight": (H, I), "mlp_ln.weight": (H,)}.items()}),
    "fairseq / torch nn.TransformerEncoderLayer (linear1/linear2)": layered(L, {"encoder.embed.weight": (V, H)},
        {"encoder.layers.#.self_attn.in_proj_weight": (3*H, H), "encoder.layers.#.self_attn.in_proj_bias": (3*H,), "encoder.layers.#.self_attn.out_proj.weight": (H, H), "encoder.layers.#.linear1.weight": (I, H), "encoder.layers.#.linear1.bias": (I,), "encoder.layers.#.linear2.weight": (H, I), "encoder.layers.#.norm1.weight": (H,)}),
    "Molmo (transformer.blocks.N.ff_proj fused)": layered(L, {"model.transformer.wte.embedding": (V, H), "model.transformer.ln_f.weight": (H,)},
        {"model.transformer.blocks.#.att_proj.weight": (3*H, H), "model.transformer.blocks.#.attn_out.weight": (H, H), "model.transformer.blocks.#.ff_proj.weight": (2*I, H), "model.transformer.blocks.#.ff_out.weight": (H, I), "model.transformer.blocks.#.attn_norm.weight": (H,)}),
    "MiniCPM-V (llm.model.layers, vpm.encoder.layers)": layered(2, {"llm.model.embed_tokens.weight": (V, H), "llm.lm_head.weight": (V, H), "resampler.query": (8, H)},
        {"llm.model.layers.#.self_attn.q_proj.weight": (H, H), "llm.model.layers.#.mlp.gate_proj.weight": (I, H), "llm.model.layers.#.mlp.up_proj.weight": (I, H), "llm.model.layers.#.mlp.down_proj.weight": (H, I), "vpm.encoder.layers.#.self_attn.q_proj.weight": (H, H), "vpm.encoder.layers.#.mlp.fc1.weight": (I, H), "vpm.encoder.layers.#.mlp.fc2.weight": (H, I)}),
    "InternVL remote (vision_model.encoder.layers.N.attn.qkv)": layered(2, {"language_model.model.embed_tokens.weight": (V, H), "mlp1.1.weight": (H, 4*H), "mlp1.3.weight": (H, H)},
        {"language_model.model.layers.#.self_attn.q_proj.weight": (H, H), "language_model.model.layers.#.mlp.gate_proj.weight": (I, H), "language_model.model.layers.#.mlp.up_proj.weight": (I, H), "language_model.model.layers.#.mlp.down_proj.weight": (H, I), "vision_model.encoder.layers.#.attn.qkv.weight": (3*H, H), "vision_model.encoder.layers.#.mlp.fc1.weight": (I, H), "vision_model.encoder.layers.#.mlp.fc2.weight": (H, I)}),
    "moondream2 (text.blocks.N.mlp.fc1, vision.blocks)": layered(2, {"model.text.wte": (V, H)},
        {"model.text.blocks.#.attn.qkv.weight": (3*H, H), "model.text.blocks.#.attn.proj.weight": (H, H), "model.text.blocks.#.mlp.fc1.weight": (I, H), "model.text.blocks.#.mlp.fc2.weight": (H, I), "model.vision.blocks.#.attn.qkv.weight": (3*H, H), "model.vision.blocks.#.mlp.fc1.weight": (I, H), "model.vision.blocks.#.mlp.fc2.weight": (H, I)}),
    "Grok-1 / MoE linear_v/linear_1/linear": layered(2, {"model.embed_tokens.weight": (V, H)},
        {"model.layers.#.attn.q_proj.weight": (H, H), **{f"model.layers.#.moe_block.experts.{e}.{n}.weight": s for e in range(4) for n, s in (("linear", (128, H)), ("linear_v", (128, H)), ("linear_1", (H, 128)))}}),
    "BFL Flux original (double_blocks/single_blocks)": layered(2, {"img_in.weight": (H, 16), "txt_in.weight": (H, 32), "final_layer.linear.weight": (16, H)},
        {"double_blocks.#.img_attn.qkv.weight": (3*H, H), "double_blocks.#.img_attn.proj.weight": (H, H), "double_blocks.#.img_mlp.0.weight": (I, H), "double_blocks.#.img_mlp.2.weight": (H, I), "double_blocks.#.txt_attn.qkv.weight": (3*H, H), "double_blocks.#.txt_mlp.0.weight": (I, H), "double_blocks.#.txt_mlp.2.weight": (H, I), "double_blocks.#.img_mod.lin.weight": (6*H, H), "single_blocks.#.linear1.weight": (3*H+I, H), "single_blocks.#.linear2.weight": (H, H+I), "single_blocks.#.modulation.lin.weight": (3*H, H)}),
    "Wan original (blocks.N.ffn.0/2)": layered(2, {"patch_embedding.weight": (H, 16, 1, 2, 2), "text_embedding.0.weight": (H, 64), "head.head.weight": (64, H)},
        {"blocks.#.self_attn.q.weight": (H, H), "blocks.#.self_attn.k.weight": (H, H), "blocks.#.self_attn.v.weight": (H, H), "blocks.#.self_attn.o.weight": (H, H), "blocks.#.cross_attn.q.weight": (H, H), "blocks.#.ffn.0.weight": (I, H), "blocks.#.ffn.0.bias": (I,), "blocks.#.ffn.2.weight": (H, I), "blocks.#.modulation": (1, 6, H)}),
    "DiT original (facebookresearch: blocks.N.mlp.fc1)": layered(2, {"x_embedder.proj.weight": (H, 4, 2, 2), "y_embedder.embedding_table.weight": (11, H), "t_embedder.mlp.0.weight": (H, 256), "t_embedder.mlp.2.weight": (H, H)},
        {"blocks.#.attn.qkv.weight": (3*H, H), "blocks.#.attn.proj.weight": (H, H), "blocks.#.mlp.fc1.weight": (I, H), "blocks.#.mlp.fc2.weight": (H, I), "blocks.#.adaLN_modulation.1.weight": (6*H, H)}),
}
TIMM = (
    "resnet18 mobilenetv3_small_100 efficientnet_b0 vit_tiny_patch16_224 convnext_atto "
    "swin_tiny_patch4_window7_224 mixer_s32_224 regnety_002 densenet121 levit_128s vgg11_bn repvgg_a0 "
    "mobilevit_xxs eva02_tiny_patch14_224 caformer_s18 coat_tiny edgenext_xx_small fastvit_t8 hrnet_w18_small "
    "ghostnetv2_100 rexnet_100 dla34 inception_v3 xcit_nano_12_p16_224 poolformer_s12 maxvit_rmlp_pico_rw_256 "
    "hgnetv2_b0 mobilenetv4_conv_small tf_efficientnetv2_b0 resnext50_32x4d deit_tiny_patch16_224 "
    "vit_tiny_r_s16_p8_224 sequencer2d_s tiny_vit_5m_224 efficientformerv2_s0 skresnet18 selecsls42b volo_d1_224 "
    "pit_ti_224 crossvit_tiny_240 convmixer_768_32 twins_svt_small nest_tiny visformer_tiny cspresnet50 "
    "mnasnet_small lcnet_050 hardcorenas_a gmlp_s16_224 resmlp_12_224 tresnet_m focalnet_tiny_srf davit_tiny "
    "hiera_tiny_224 repghostnet_050 starnet_s1 flexivit_small"
).split()
ULTRALYTICS = "yolov8n yolo11n yolov5n".split()
DIFFUSERS: dict[str, tuple[str, dict[str, Any]]] = {
    "UNet2DConditionModel": ("UNet2DConditionModel", dict(**UNET)),
    "AutoencoderKL": ("AutoencoderKL", dict(**VAE)),
    "ControlNetModel": ("ControlNetModel", dict(block_out_channels=(32, 64), down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"), cross_attention_dim=32, attention_head_dim=4, layers_per_block=1, conditioning_embedding_out_channels=(16, 32))),
    "FluxTransformer2DModel": ("FluxTransformer2DModel", dict(in_channels=16, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8))),
    "SD3Transformer2DModel": ("SD3Transformer2DModel", dict(sample_size=16, num_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=64, pooled_projection_dim=32, in_channels=4, out_channels=4, pos_embed_max_size=16)),
    "PixArtTransformer2DModel": ("PixArtTransformer2DModel", dict(sample_size=16, num_layers=2, attention_head_dim=16, num_attention_heads=4, cross_attention_dim=64, caption_channels=32, in_channels=4, out_channels=8)),
    "DiTTransformer2DModel": ("DiTTransformer2DModel", dict(sample_size=16, num_layers=2, attention_head_dim=16, num_attention_heads=4, in_channels=4, out_channels=8, num_embeds_ada_norm=10)),
    "WanTransformer3DModel": ("WanTransformer3DModel", dict(num_attention_heads=4, attention_head_dim=16, ffn_dim=256, num_layers=2, text_dim=32, freq_dim=32)),
    "QwenImageTransformer2DModel": ("QwenImageTransformer2DModel", dict(in_channels=16, out_channels=4, num_layers=2, attention_head_dim=16, num_attention_heads=4, joint_attention_dim=32, axes_dims_rope=(4, 4, 8))),
    "HunyuanVideoTransformer3DModel": ("HunyuanVideoTransformer3DModel", dict(in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=16, num_layers=1, num_single_layers=1, num_refiner_layers=1, text_embed_dim=32, pooled_projection_dim=32, rope_axes_dim=(4, 4, 8))),
    "CogVideoXTransformer3DModel": ("CogVideoXTransformer3DModel", dict(num_attention_heads=4, attention_head_dim=16, num_layers=2, text_embed_dim=32, time_embed_dim=32, sample_width=16, sample_height=16, sample_frames=9)),
    "LTXVideoTransformer3DModel": ("LTXVideoTransformer3DModel", dict(in_channels=16, out_channels=16, num_attention_heads=4, attention_head_dim=16, cross_attention_dim=64, num_layers=2, caption_channels=32)),
    "SanaTransformer2DModel (GLUMBConv)": ("SanaTransformer2DModel", dict(in_channels=4, out_channels=4, num_attention_heads=4, attention_head_dim=16, num_layers=2, num_cross_attention_heads=4, cross_attention_head_dim=16, cross_attention_dim=64, caption_channels=32, sample_size=16)),
    "ZImageTransformer2DModel (feed_forward.w1)": ("ZImageTransformer2DModel", dict(in_channels=4, dim=64, n_layers=2, n_refiner_layers=1, n_heads=4, n_kv_heads=4, cap_feat_dim=32, axes_dims=(4, 4, 8), axes_lens=(32, 32, 32))),
    "UNet2DModel (DDPM)": ("UNet2DModel", dict(sample_size=16, block_out_channels=(32, 64), down_block_types=("DownBlock2D", "AttnDownBlock2D"), up_block_types=("AttnUpBlock2D", "UpBlock2D"), layers_per_block=1)),
}
# fmt: on


def from_shapes(shapes: Mapping[str, tuple[int, ...]]) -> Make:
    """Norms of 1, biases of 0, the rest normal."""

    def make(seed: int) -> Tensors:
        generator = torch.Generator().manual_seed(seed)
        return {
            name: torch.randn(shape, generator=generator) * 0.02
            if len(shape) > 1
            else torch.full(shape, float(name.endswith("weight")))
            for name, shape in shapes.items()
        }

    return make


def from_module(build: Callable[[], torch.nn.Module]) -> Make:
    """The state of a module as it starts."""

    def make(seed: int) -> Tensors:
        torch.manual_seed(seed)
        return {name: tensor.detach().clone() for name, tensor in build().state_dict().items()}

    return make


def transformers_model(kind: str, model_type: str, **config: Any) -> Make:
    """A class of transformers from a configuration, in the names and tensors that `save_pretrained` writes."""

    def make(seed: int) -> Tensors:
        import transformers
        from transformers.core_model_loading import revert_weight_conversion
        from transformers.modeling_utils import remove_tied_weights_from_state_dict

        torch.manual_seed(seed)
        model = getattr(transformers, kind)(transformers.AutoConfig.for_model(model_type, **config))
        ignored = {*(getattr(model, "_keys_to_ignore_on_save", None) or ())}
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in ignored}
        state = revert_weight_conversion(model, remove_tied_weights_from_state_dict(state, model))
        return {name: tensor.detach().clone().contiguous() for name, tensor in state.items()}

    return make


def timm_model(name: str) -> Make:
    def build() -> torch.nn.Module:
        import timm

        return timm.create_model(name)

    return from_module(build)


def diffusers_model(kind: str, **config: Any) -> Make:
    def build() -> torch.nn.Module:
        import diffusers

        return getattr(diffusers, kind)(**config)

    return from_module(build)


def ultralytics_model(name: str) -> Make:
    def build() -> torch.nn.Module:
        from ultralytics.nn.tasks import DetectionModel

        return DetectionModel(f"{name}.yaml", ch=3, nc=10, verbose=False)

    return from_module(build)


MODELS: dict[str, dict[str, Make]] = {
    "transformers": {name: transformers_model(kind, of, **config) for name, (kind, of, config) in TRANSFORMERS.items()},
    "other code": {name: from_shapes(shapes) for name, shapes in NAMED.items()}
    | {f"{name} (ultralytics)": ultralytics_model(name) for name in ULTRALYTICS},
    "timm": {name: timm_model(name) for name in TIMM},
    "diffusers": {name: diffusers_model(kind, **config) for name, (kind, config) in DIFFUSERS.items()},
}
