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
#[cfg(test)]
mod fixture;
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
    use kiv_policy::{BlockId, SelectRequest, Selection};
    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    #[test]
    fn every_shipped_policy_conforms() {
        for name in NAMES {
            let make = || by_name(name).expect("listed names exist");
            assert_eq!(make().name(), name);
            kiv_policy::conformance::check(make).unwrap();
        }
    }

    /// As those are asked that are chosen by name.
    #[test]
    fn who_is_helped_says_so() {
        for name in NAMES {
            let is_helped = by_name(name).is_some_and(|policy| Policy::takes_help(&policy));
            assert_eq!(is_helped, name == "pq", "{name}");
        }
    }

    /// What is wanted of 40 blocks with so many slots, and what comes next.
    fn choice(policy: &str, n_slots: usize, runners: usize) -> [Vec<BlockId>; 2] {
        choose(policy, n_slots, runners, 1.5, None)
    }

    /// The same, of keys of another size; a rest is of use if it is told what is resident.
    fn choose(
        policy: &str,
        n_slots: usize,
        runners: usize,
        size: f32,
        resident: Option<&[BlockId]>,
    ) -> [Vec<BlockId>; 2] {
        let mut rng = ChaCha8Rng::seed_from_u64(8);
        let mut policy = by_name(policy).unwrap();
        let store = fixture::store(&mut *policy, n_slots, size, &mut rng);
        let queries = fixture::random(&mut rng, 2 * fixture::DIM, 1.5);
        let resident = resident.as_slice();
        let request = SelectRequest {
            runners,
            takes_rest: !resident.is_empty(),
            ..fixture::request(&queries, &store, resident)
        };
        let mut selection = Selection::default();
        selection.reset(1);
        policy.select(&request, &mut selection).unwrap();
        selection.validate(n_slots, fixture::N_BLOCKS).unwrap();
        [selection.head(0).to_vec(), selection.runners(0).to_vec()]
    }

    #[test]
    fn what_comes_next_is_what_more_slots_would_have_taken() {
        for policy in ["exact", "pq"] {
            let [wanted, next] = choice(policy, 6, 4);
            assert_eq!((wanted.len(), next.len()), (6, 4));
            for n in 0..=next.len() {
                let mut all = [&wanted[..], &next[..n]].concat();
                all.sort_unstable();
                let [more, none] = choice(policy, 6 + n, 0);
                assert_eq!((all, none), (more, vec![]), "{policy}, {n} more");
            }
        }
    }

    /// With a rest for what is left out, a block is not copied for the sake of next to nothing.
    #[test]
    fn who_is_there_stays_unless_others_have_more() {
        let resident = [30, 3, 17, 9, 25, BlockId::MAX];
        // All blocks have nearly the same share.
        let [stay, _] = choose("pq", 6, 0, 1e-4, Some(&resident));
        let mut want = resident[..5].to_vec();
        want.sort_unstable();
        assert_eq!(stay, want);
        let [others, _] = choose("pq", 6, 0, 1e-4, Some(&[]));
        assert_ne!(others, want);
        // Some have more.
        let [best, _] = choose("pq", 6, 0, 1.5, Some(&[]));
        assert_eq!(choose("pq", 6, 0, 1.5, Some(&resident))[0], best);
        assert!(!best.contains(&30));
    }
}
