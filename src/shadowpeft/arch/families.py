"""The table of supported model families. To add one, add a row here and a tiny configuration to the tests."""

from shadowpeft.arch.family import DEPTH, EVERY_BLOCK, Each, Family

# In other families the first of these is the name of the norm before the MLP.
_BEHIND = ("post_attention_layernorm", "post_feedforward_layernorm")
# A mixture of one expert, which every token chooses, for mixtures that have no dense blocks.
_ONE_EXPERT = (("num_experts", 1), ("num_experts_per_tok", 1))
_ONE_LOCAL_EXPERT = (("num_local_experts", 1), ("num_experts_per_tok", 1))
_NO_EXPERTS = (("mlp_only_layers", EVERY_BLOCK),)
_ALL_DENSE = (("mlp_layer_types", Each("dense")),)
_ALL_FULL = ("layer_types", Each("full_attention"))
# More keys than any context has.
_ALL_KEYS = (("index_topk", 2**31 - 1),)
_DENSE_FIRST = (("first_k_dense_replace", DEPTH),)

FAMILIES: dict[str, Family] = {
    family.model_type: family
    for family in (
        Family("Llama", "llama", "LlamaForCausalLM", "LlamaForSequenceClassification"),
        Family("Mistral", "mistral", "MistralForCausalLM", "MistralForSequenceClassification"),
        Family("Qwen2", "qwen2", "Qwen2ForCausalLM", "Qwen2ForSequenceClassification", head_dim=None),
        Family("Qwen3", "qwen3", "Qwen3ForCausalLM", "Qwen3ForSequenceClassification"),
        Family(
            "Qwen3-MoE", "qwen3_moe", "Qwen3MoeForCausalLM", "Qwen3MoeForSequenceClassification",
            dense=_NO_EXPERTS,
        ),
        Family(
            "Gemma 2", "gemma2", "Gemma2ForCausalLM", "Gemma2ForSequenceClassification", output_norms=_BEHIND,
            softcaps=True, masks_itself=False,
        ),
        Family(
            "Gemma 3 (text)", "gemma3_text", "Gemma3ForCausalLM", "Gemma3TextForSequenceClassification",
            output_norms=_BEHIND, softcaps=True,
        ),
        Family(
            "Phi-3", "phi3", "Phi3ForCausalLM", "Phi3ForSequenceClassification", head_dim=None,
            rope_switch="original_max_position_embeddings",
        ),
        Family(
            "OLMo 2", "olmo2", "Olmo2ForCausalLM", "Olmo2ForSequenceClassification", head_dim=None,
            input_norm=None, output_norms=_BEHIND,
        ),
        Family(
            "OPT", "opt", "OPTForCausalLM", "OPTForSequenceClassification", decoder="model.decoder",
            input_norm="self_attn_layer_norm", embeddings=("embed_tokens", "embed_positions"), mlp="ffn_dim",
            kv_heads=None, head_dim=None, packs=False, masks_itself=False,
        ),
        Family(
            "GPT-2", "gpt2", "GPT2LMHeadModel", "GPT2ForSequenceClassification", decoder="transformer",
            blocks="h", input_norm="ln_1", embeddings=("wte", "wpe"), mlp="n_inner", kv_heads=None,
            head_dim=None, masks_itself=False,
        ),
        Family(
            "GPT-NeoX", "gpt_neox", "GPTNeoXForCausalLM", "GPTNeoXForSequenceClassification",
            decoder="gpt_neox", embeddings=("embed_in",), kv_heads=None, head_dim=None, masks_itself=False,
        ),
        Family(
            "Falcon", "falcon", "FalconForCausalLM", "FalconForSequenceClassification", decoder="transformer",
            blocks="h", embeddings=("word_embeddings",), mlp="ffn_hidden_size", kv_heads="num_kv_heads",
            head_dim=None, passes_kwargs=False, packs=False, masks_itself=False,
        ),
        Family(
            "BLOOM", "bloom", "BloomForCausalLM", "BloomForSequenceClassification", decoder="transformer",
            blocks="h", embeddings=("word_embeddings", "word_embeddings_layernorm"), mlp=None, kv_heads=None,
            head_dim=None, context=None, passes_kwargs=False, takes_positions=False, packs=False,
            mask_fills_cache=True, masks_itself=False,
        ),
        Family(
            "GPT-J", "gptj", "GPTJForCausalLM", "GPTJForSequenceClassification", decoder="transformer",
            blocks="h", input_norm="ln_1", embeddings=("wte",), mlp="n_inner", kv_heads=None, head_dim=None,
            passes_kwargs=False, masks_itself=False,
        ),
        Family(
            "GPT-BigCode", "gpt_bigcode", "GPTBigCodeForCausalLM", "GPTBigCodeForSequenceClassification",
            decoder="transformer", blocks="h", input_norm="ln_1", embeddings=("wte", "wpe"), mlp="n_inner",
            kv_heads=None, head_dim=None, masks_itself=False,
        ),
        Family("Apertus", "apertus", "ApertusForCausalLM", head_dim=None, input_norm="attention_layernorm"),
        Family("Arcee", "arcee", "ArceeForCausalLM", "ArceeForSequenceClassification"),
        Family("BitNet", "bitnet", "BitNetForCausalLM", head_dim=None),
        Family("Cohere", "cohere", "CohereForCausalLM", head_dim=None, multiplies_logits="logit_scale"),
        Family("Cohere 2", "cohere2", "Cohere2ForCausalLM", head_dim=None, multiplies_logits="logit_scale"),
        Family(
            "Cohere 2 MoE", "cohere2_moe", "Cohere2MoeForCausalLM", multiplies_logits="logit_scale",
            dense=_ALL_DENSE,
        ),
        Family("CWM", "cwm", "CwmForCausalLM"),
        Family(
            "DeepSeek-V2", "deepseek_v2", "DeepseekV2ForCausalLM", "DeepseekV2ForSequenceClassification",
            kv_heads=None, head_dim=None, dense=_DENSE_FIRST,
        ),
        Family(
            "DeepSeek-V3", "deepseek_v3", "DeepseekV3ForCausalLM", "DeepseekV3ForSequenceClassification",
            kv_heads=None, head_dim=None, dense=_DENSE_FIRST,
        ),
        Family(
            "DeepSeek-V3.2", "deepseek_v32", "DeepseekV32ForCausalLM", kv_heads=None, head_dim=None,
            dense=_ALL_DENSE, plain=_ALL_KEYS, router="self_attn.indexer", masks_itself=False,
        ),
        Family("dots.1", "dots1", "Dots1ForCausalLM", head_dim=None, dense=_DENSE_FIRST),
        Family("ERNIE 4.5", "ernie4_5", "Ernie4_5ForCausalLM"),
        Family(
            "ERNIE 4.5 MoE", "ernie4_5_moe", "Ernie4_5_MoeForCausalLM", head_dim=None,
            dense=(("moe_layer_start_index", DEPTH),),
        ),
        Family(
            "EXAONE 4", "exaone4", "Exaone4ForCausalLM", "Exaone4ForSequenceClassification", head_dim=None,
            input_norm=None, output_norms=_BEHIND,
        ),
        Family("EXAONE-MoE", "exaone_moe", "ExaoneMoeForCausalLM", head_dim=None, dense=_ALL_DENSE),
        Family(
            "Falcon-H1", "falcon_h1", "FalconH1ForCausalLM", head_dim=None, lists_kinds=False, recurs=True,
            shadow_recurs=True, multiplies_logits="lm_head_multiplier", packs=False,
        ),
        Family(
            "FlexOlmo", "flex_olmo", "FlexOlmoForCausalLM", head_dim=None, input_norm=None,
            output_norms=_BEHIND, dense=_ONE_EXPERT, router="mlp.gate",
        ),
        Family("Gemma", "gemma", "GemmaForCausalLM", "GemmaForSequenceClassification"),
        Family(
            "Gemma 4 (text)", "gemma4_text", "Gemma4ForCausalLM",
            output_norms=(*_BEHIND, "post_per_layer_input_norm"),
            norms_switches=(("hidden_size_per_layer_input", ("post_per_layer_input_norm",)),),
            tables=("embed_tokens_per_layer",), softcaps=True, dense=(("enable_moe_block", False),),
            plain=(
                ("hidden_size_per_layer_input", 0), ("num_kv_shared_layers", 0), _ALL_FULL,
                ("per_layer_config", {}),
            ),
        ),
        Family(
            "Gemma 4 Unified (text)", "gemma4_unified_text", "Gemma4UnifiedForCausalLM", output_norms=_BEHIND,
            softcaps=True, plain=(("num_kv_shared_layers", 0), _ALL_FULL, ("per_layer_config", {})),
        ),
        Family("GLM", "glm", "GlmForCausalLM", "GlmForSequenceClassification"),
        Family(
            "GLM-4", "glm4", "Glm4ForCausalLM", "Glm4ForSequenceClassification",
            output_norms=("post_self_attn_layernorm", "post_mlp_layernorm"),
        ),
        Family("GLM-4-MoE", "glm4_moe", "Glm4MoeForCausalLM", head_dim=None, dense=_DENSE_FIRST),
        Family(
            "GLM-4-MoE-Lite", "glm4_moe_lite", "Glm4MoeLiteForCausalLM", kv_heads=None, head_dim=None,
            dense=_ALL_DENSE,
        ),
        Family(
            "GLM-MoE-DSA", "glm_moe_dsa", "GlmMoeDsaForCausalLM", kv_heads=None, head_dim=None,
            dense=_ALL_DENSE, plain=(*_ALL_KEYS, ("indexer_types", Each("full"))), router="self_attn.indexer",
            masks_itself=False,
        ),
        Family(
            "gpt-oss", "gpt_oss", "GptOssForCausalLM", "GptOssForSequenceClassification",
            dense=_ONE_LOCAL_EXPERT, router="mlp.router", masks_itself=False, packs=False,
        ),
        Family("Granite", "granite", "GraniteForCausalLM", head_dim=None, divides_logits="logits_scaling"),
        Family(
            "Granite-MoE", "granitemoe", "GraniteMoeForCausalLM", head_dim=None,
            divides_logits="logits_scaling", dense=_ONE_LOCAL_EXPERT, router="block_sparse_moe.router",
        ),
        Family(
            "Granite-MoE-Hybrid", "granitemoehybrid", "GraniteMoeHybridForCausalLM",
            mlp="shared_intermediate_size", head_dim=None, divides_logits="logits_scaling",
            dense=(("num_local_experts", 0),), recurs=True, packs=False,
        ),
        Family(
            "Granite-MoE-Shared", "granitemoeshared", "GraniteMoeSharedForCausalLM", head_dim=None,
            divides_logits="logits_scaling", dense=_ONE_LOCAL_EXPERT, router="block_sparse_moe.router",
        ),
        Family(
            "Granite-MoE-SWA", "granitemoe_swa", "GraniteMoeSWAForCausalLM", head_dim=None,
            divides_logits="logits_scaling", dense=_ONE_LOCAL_EXPERT, router="block_sparse_moe.router",
            masks_itself=False,
        ),
        Family(
            "Granite-SWA", "granite_swa", "GraniteSWAForCausalLM", head_dim=None,
            divides_logits="logits_scaling", masks_itself=False,
        ),
        Family("Helium", "helium", "HeliumForCausalLM", "HeliumForSequenceClassification"),
        Family(
            "HunYuan (dense)", "hunyuan_v1_dense", "HunYuanDenseV1ForCausalLM",
            "HunYuanDenseV1ForSequenceClassification",
        ),
        Family(
            "HunYuan (MoE)", "hunyuan_v1_moe", "HunYuanMoEV1ForCausalLM",
            "HunYuanMoEV1ForSequenceClassification", dense=(("num_experts", 1), ("moe_topk", 1)),
            router="mlp.gate",
        ),
        Family("Hy3", "hy_v3", "HYV3ForCausalLM", dense=_ALL_DENSE),
        Family(
            "HyperCLOVA X", "hyperclovax", "HyperCLOVAXForCausalLM",
            output_norms=("post_norm1", "post_norm2"),
            norms_switches=(("use_post_norm", ("post_norm1", "post_norm2")),),
            multiplies_logits="logits_scaling",
        ),
        Family("Jais 2", "jais2", "Jais2ForCausalLM"),
        Family(
            "Jamba", "jamba", "JambaForCausalLM", "JambaForSequenceClassification", head_dim=None,
            lists_kinds=False, dense=(("num_experts", 1),),
            plain=(("attn_layer_period", 1), ("attn_layer_offset", 0)), recurs=True, packs=False,
        ),
        Family(
            "Kimi-Linear", "kimi_linear", "KimiLinearForCausalLM", kv_heads=None, head_dim=None,
            context="model_max_length", dense=_ALL_DENSE, recurs=True, packs=False,
        ),
        Family(
            "LFM2", "lfm2", "Lfm2ForCausalLM", head_dim=None, input_norm="operator_norm", recurs=True,
            packs=False,
        ),
        Family(
            "LFM2-MoE", "lfm2_moe", "Lfm2MoeForCausalLM", head_dim=None, input_norm="operator_norm",
            dense=(("num_dense_layers", DEPTH),), recurs=True, packs=False,
        ),
        Family(
            "LFM3", "lfm3", "Lfm3ForCausalLM", input_norm="operator_norm",
            output_norms=("post_operator_norm", "post_ffn_norm"),
            norms_switches=(("use_sandwich_norm", ("post_operator_norm", "post_ffn_norm")),),
            recurs=True, packs=False,
        ),
        Family(
            "Llama 4 (text)", "llama4_text", "Llama4ForCausalLM", mlp="intermediate_size_mlp",
            dense=(("moe_layers", []),), masks_itself=False,
        ),
        Family("Mellum", "mellum", "MellumForCausalLM", dense=_ALL_DENSE),
        Family(
            "MiMo-V2-Flash", "mimo_v2_flash", "MiMoV2FlashForCausalLM", dense=_ALL_DENSE, masks_itself=False,
        ),
        Family(
            "MiniMax-M2", "minimax_m2", "MiniMaxM2ForCausalLM", dense=_ONE_LOCAL_EXPERT, router="mlp.gate",
        ),
        Family("Ministral", "ministral", "MinistralForCausalLM", "MinistralForSequenceClassification"),
        Family("Ministral 3", "ministral3", "Ministral3ForCausalLM", "Ministral3ForSequenceClassification"),
        Family(
            "Mixtral", "mixtral", "MixtralForCausalLM", "MixtralForSequenceClassification",
            dense=_ONE_LOCAL_EXPERT, router="mlp.gate",
        ),
        Family("NanoChat", "nanochat", "NanoChatForCausalLM", head_dim=None, softcaps=True),
        Family("Nemotron", "nemotron", "NemotronForCausalLM", "NemotronForSequenceClassification"),
        Family(
            "Nemotron-H", "nemotron_h", "NemotronHForCausalLM", input_norm="norm", embeddings=("embeddings",),
            blocks_a_layer=2, block_attributes=("block_type",),
            dense=(("layer_types", Each("full_attention", "mlp")),), recurs=True, packs=False, widens=True,
        ),
        Family("OLMo", "olmo", "OlmoForCausalLM", "OlmoForSequenceClassification", head_dim=None),
        Family(
            "OLMo 3", "olmo3", "Olmo3ForCausalLM", "Olmo3ForSequenceClassification", head_dim=None,
            input_norm=None, output_norms=_BEHIND,
        ),
        Family("OLMoE", "olmoe", "OlmoeForCausalLM", head_dim=None, dense=_ONE_EXPERT, router="mlp.gate"),
        Family(
            "Persimmon", "persimmon", "PersimmonForCausalLM", "PersimmonForSequenceClassification",
            kv_heads=None, head_dim=None,
        ),
        Family("Phi", "phi", "PhiForCausalLM", "PhiForSequenceClassification", head_dim=None),
        Family(
            "Phi-MoE", "phimoe", "PhimoeForCausalLM", "PhimoeForSequenceClassification", head_dim=None,
            dense=(("num_local_experts", 2),), router="mlp.router",
        ),
        Family(
            "Qwen2-MoE", "qwen2_moe", "Qwen2MoeForCausalLM", "Qwen2MoeForSequenceClassification",
            head_dim=None, dense=_NO_EXPERTS,
        ),
        Family(
            "Qwen3-Next", "qwen3_next", "Qwen3NextForCausalLM", "Qwen3NextForSequenceClassification",
            dense=_NO_EXPERTS, recurs=True, packs=False,
        ),
        Family(
            "Qwen3.5 (text)", "qwen3_5_text", "Qwen3_5ForCausalLM", "Qwen3_5TextForSequenceClassification",
            recurs=True, packs=False,
        ),
        Family(
            "Qwen3.5-MoE (text)", "qwen3_5_moe_text", "Qwen3_5MoeForCausalLM", mlp="moe_intermediate_size",
            dense=_ONE_EXPERT, router="mlp.gate", recurs=True, packs=False,
        ),
        Family("Seed-OSS", "seed_oss", "SeedOssForCausalLM", "SeedOssForSequenceClassification"),
        Family("SmolLM3", "smollm3", "SmolLM3ForCausalLM", "SmolLM3ForSequenceClassification", head_dim=None),
        Family(
            "Solar Open", "solar_open", "SolarOpenForCausalLM", mlp="moe_intermediate_size",
            dense=(("n_routed_experts", 2), ("num_experts_per_tok", 2)),
        ),
        Family(
            "StableLM", "stablelm", "StableLmForCausalLM", "StableLmForSequenceClassification", head_dim=None,
        ),
        Family(
            "StarCoder 2", "starcoder2", "Starcoder2ForCausalLM", "Starcoder2ForSequenceClassification",
            head_dim=None,
        ),
        Family(
            "Trinity (AFMoE)", "afmoe", "AfmoeForCausalLM", output_norms=("post_attention_layernorm",
            "post_mlp_layernorm"), dense=(("num_dense_layers", DEPTH),), packs=False,
        ),
        Family("VaultGemma", "vaultgemma", "VaultGemmaForCausalLM", softcaps=True, masks_itself=False),
    )
}  # fmt: skip
