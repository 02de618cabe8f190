//! The cache policies that ship with kiv, selectable by name.
//!
//! | name | rule | source |
//! |---|---|---|
//! | `window` | sinks and recent window only; what leaves is dropped | StreamingLLM, arXiv 2309.17453 |
//! | `exact` | the blocks with the most true attention mass: the oracle | - |
//! | `kiv` | mean-key pages, then single tokens, one set for all heads | KIV, github.com/Babyhamsta/KIV |
//!
//! `full`, stock llama.cpp with everything resident, is not a policy: nothing
//! is ever decided.

mod exact;
mod kiv;
mod numeric;
mod top;
mod window;

pub use exact::Exact;
pub use kiv::Kiv;
pub use window::Window;

use kiv_policy::Policy;

/// Names that [`by_name`] knows, in the order of the table above.
pub const NAMES: [&str; 3] = ["window", "exact", "kiv"];

/// A fresh policy of this name.
#[must_use]
pub fn by_name(name: &str) -> Option<Box<dyn Policy>> {
    match name {
        "window" => Some(Box::new(Window)),
        "exact" => Some(Box::new(Exact::default())),
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
