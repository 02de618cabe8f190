//! Anything as a saved index: it is refused, or can be searched, cut and
//! saved.
#![no_main]

use kiv_index::{HeadIndex, Params};
use kiv_wire::Take;
use libfuzzer_sys::fuzz_target;

const DIM: usize = 4;

fn params() -> Params {
    Params {
        segment: 32,
        era: 2,
        late: 1,
        ..Params::new(DIM, 0.5)
    }
}

/// What is right for every input: the sizes come first.
fn head() -> Vec<u8> {
    let mut bytes = Vec::new();
    HeadIndex::new(params()).put_rest(&mut bytes);
    bytes
}

fuzz_target!(|data: &[u8]| {
    let Some((split, rest)) = data.split_first_chunk::<2>() else {
        return;
    };
    let split = usize::from(u16::from_le_bytes(*split)).min(rest.len());
    let (rest, era) = rest.split_at(split);
    let mut whole = head();
    // Version and sizes stay, the lengths and lists that follow are free.
    let fixed = 4 + 6 * 8 + 4;
    whole.truncate(fixed);
    whole.extend(rest);
    for eras in [&mut [][..], &mut [Take::new(era)][..]] {
        let Ok(mut index) = HeadIndex::take(params(), &mut Take::new(&whole), eras) else {
            continue;
        };
        let mut out = Vec::new();
        index.put_rest(&mut out);
        let n = index.len();
        index.truncate(n / 2);
        index.truncate(1);
        index.put_rest(&mut out);
    }
});
