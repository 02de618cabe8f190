//! The cache policies that ship with kiv, selectable by name.
//!
//! | name | rule | source |
//! |---|---|---|
//! | `pq` | the blocks with the most attention mass, by the product-quantized index | `kiv-index` |
//! | `window` | sinks and recent window only; what leaves is dropped | StreamingLLM, arXiv 2309.17453 |
//! | `exact` | the blocks with the most true attention mass: the oracle | - |
//! | `quest` | the blocks whose min/max box promises most | Quest, arXiv 2406.10774 |
//! | `arkvale` | the same with a box of mean and deviation | ArkVale, NeurIPS 2024 |
//! | `kiv` | mean-key pages, then single tokens, one set for all heads | KIV, github.com/Babyhamsta/KIV |
//!
//! `full`, stock llama.cpp with everything resident, is not a policy: nothing
//! is ever decided.

mod digest;
mod exact;
mod kiv;
mod local;
mod pq;
mod top;
mod window;

pub use digest::Digest;
pub use exact::Exact;
pub use kiv::Kiv;
pub use pq::Pq;
pub use window::Window;

use kiv_policy::Policy;

/// Names that [`by_name`] knows, in the order of the table above.
pub const NAMES: [&str; 6] = ["pq", "window", "exact", "quest", "arkvale", "kiv"];

/// A fresh policy of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Policy>> {
    match name {
        "pq" => Some(Box::new(Pq::default())),
        "window" => Some(Box::new(Window)),
        "exact" => Some(Box::new(Exact::default())),
        "quest" => Some(Box::new(Digest::quest())),
        "arkvale" => Some(Box::new(Digest::arkvale())),
        "kiv" => Some(Box::new(Kiv::default())),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shipped_policy_conforms() {
        for name in NAMES {
            let make = || by_name(name).expect("listed names exist");
            assert_eq!(make().name(), name);
            kiv_policy::conformance::check(make).unwrap();
        }
    }
}
