//! Bytes, worked out by hand.

mod common;

use common::{Key, flags, open, tiny, u};
use kiv_gguf::{MemoryPlan, ModelFile, PlanOptions};
use kiv_policy::RowFormat::{F16, Q4_0, Q8_0};
use kiv_pool::{PoolConfig, PoolLayout};

#[test]
fn bundled_model_at_a_million_tokens() {
    let model = ModelFile::open(tiny()).unwrap();
    assert_eq!(model.kv_bytes_per_token(F16, F16), 2048);
    // 4 layers x 2 heads x (64 / 32 x 34 bytes of K and 64 / 32 x 18 of V)
    assert_eq!(
        model.kv_bytes_per_token(Q8_0, Q4_0),
        4 * 2 * (2 * 34 + 2 * 18)
    );
    assert_eq!(
        model.stock_kv_bytes(1_000_000, F16, F16, 512),
        1_000_192 * 2048
    );

    let layout = PoolLayout::new(&PoolConfig::default()).unwrap();
    let plan = MemoryPlan::new(&model, &layout, 1 << 20, F16, F16, &PlanOptions::default());
    assert_eq!(plan.resident_kv_bytes, layout.n_cells as u64 * 2048);
    assert_eq!(plan.other_kv_bytes, 0);
    let cold = layout.cold_tokens(1 << 20) as u64;
    assert_eq!(plan.host_kv_bytes, cold * 2048);
    assert_eq!(plan.stock_kv_bytes, 2048 << 20);
    assert!(
        plan.compute_bytes > 4 << 20 && plan.compute_bytes < 64 << 20,
        "{plan:?}"
    );
    assert_eq!(
        plan.total_host_bytes,
        plan.resident_kv_bytes + plan.host_kv_bytes + plan.weights_bytes + plan.compute_bytes
    );

    let window = PlanOptions {
        cold_rows: false,
        index_bytes: 7,
        indexing_bytes: 5,
        ..PlanOptions::default()
    };
    let plan = MemoryPlan::new(&model, &layout, 1 << 20, F16, F16, &window);
    assert_eq!((plan.host_kv_bytes, plan.index_bytes), (0, 7));
    let parts = plan.resident_kv_bytes + plan.weights_bytes + plan.compute_bytes;
    assert_eq!(plan.total_host_bytes, parts + 7 + 5);
    // Nothing is cold while all fits the pool.
    let plan = MemoryPlan::new(&model, &layout, 512, F16, F16, &PlanOptions::default());
    assert_eq!(plan.host_kv_bytes, 0);
    // Lengths that no machine has do not wrap.
    let plan = MemoryPlan::new(
        &model,
        &layout,
        usize::MAX / 2,
        F16,
        F16,
        &PlanOptions::default(),
    );
    assert_eq!(plan.total_host_bytes, u64::MAX);
}

#[test]
fn windows_stay_small_and_are_not_tiered() {
    let keys: [Key; 2] = [
        (".attention.sliding_window", u(512)),
        (".block_count", u(6)),
    ];
    let model = open("gemma3", &keys).unwrap();
    let cell = 2 * 16 * 2 * 2;
    assert_eq!(model.kv_bytes_per_token(F16, F16), cell);
    // 512 + 100 tokens in steps of 256, five layers; never more than the context
    assert_eq!(model.other_kv_bytes(100_000, F16, F16, 100), 5 * cell * 768);
    assert_eq!(model.other_kv_bytes(200, F16, F16, 100), 5 * cell * 256);
    assert_eq!(
        model.stock_kv_bytes(100_000, F16, F16, 100),
        cell * (100_096 + 5 * 768)
    );
}

#[test]
fn states_latent_keys_and_shared_layers() {
    let keys: [Key; 4] = [
        (".ssm.conv_kernel", u(4)),
        (".ssm.inner_size", u(128)),
        (".ssm.state_size", u(16)),
        (".attention.head_count", u(0)),
    ];
    let model = open("mamba", &keys).unwrap();
    assert_eq!(
        model.stock_kv_bytes(100_000, F16, F16, 512),
        4 * 4 * (3 * 128 + 128 * 16)
    );

    let keys: [Key; 4] = [
        (".attention.head_count_kv", u(1)),
        (".attention.key_length", u(576)),
        (".attention.key_length_mla", u(192)),
        (".attention.value_length_mla", u(128)),
    ];
    let model = open("deepseek2", &keys).unwrap();
    assert_eq!(model.kv_bytes_per_token(F16, F16), 0);
    assert_eq!(model.stock_kv_bytes(256, F16, F16, 512), 4 * 256 * 576 * 2);

    let keys: [Key; 3] = [
        (".attention.sliding_window", u(512)),
        (
            ".attention.sliding_window_pattern",
            flags(&[true, false, true, false]),
        ),
        (".attention.shared_kv_layers", u(2)),
    ];
    let model = open("gemma4", &keys).unwrap();
    let cell = 2 * 16 * 2 * 2;
    assert_eq!(
        model.stock_kv_bytes(4096, F16, F16, 256),
        cell * (4096 + 768)
    );
}

#[test]
fn cache_types_that_do_not_fit_are_named() {
    let model = open("llama", &[(".attention.value_length", u(32))]).unwrap();
    model.check_cache_types(F16, Q8_0).unwrap();
    let message = model.check_cache_types(Q8_0, F16).unwrap_err().to_string();
    assert!(
        message.contains("-ctk q8_0") && message.contains("layer 0 has 16"),
        "{message}"
    );
}
