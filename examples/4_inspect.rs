//! What is in a model file, and what memory a million tokens will take.
//!
//! ```sh
//! cargo run --release --example 4_inspect -- model.gguf
//! ```

use kiv::inspect::{MemoryPlan, ModelFile, PlanOptions, PoolConfig, PoolLayout};
use kiv::policy::RowFormat;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let path = std::env::args()
        .nth(1)
        .unwrap_or_else(|| "models/tiny-f16.gguf".to_owned());
    let file = ModelFile::open(&path)?;
    println!(
        "{}: {} layers, trained for {} tokens",
        file.arch, file.n_layer, file.n_ctx_train
    );
    for layer in &file.layers {
        println!(
            "layer {}: {}, {} KV heads of {}",
            layer.il,
            layer.kind.name(),
            layer.n_head_kv,
            layer.key_dim
        );
    }
    let pool = PoolLayout::new(&PoolConfig::default())?;
    let f16 = RowFormat::F16;
    let plan = MemoryPlan::new(&file, &pool, 1 << 20, f16, f16, &PlanOptions::default());
    println!(
        "at 1 M tokens: {} bytes resident and {} in host RAM, where stock llama.cpp keeps {} resident",
        plan.resident_kv_bytes, plan.host_kv_bytes, plan.stock_kv_bytes
    );
    Ok(())
}
