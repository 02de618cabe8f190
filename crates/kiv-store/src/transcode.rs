//! Rows in a smaller type than the cache's.
//!
//! Blocks are converted once, when they are sealed, and back whenever they are
//! swapped in. ggml's block formats are used as they are, so that 32 values
//! share a scale: 34 bytes for 64 at 8 bits, 18 at 4.

use kiv_policy::{RowFormat, Rows};

/// From the cache's types to the store's.
#[derive(Clone, Debug)]
pub struct Transcoder {
    /// K and V: cache, store.
    kinds: [(RowFormat, RowFormat); 2],
    numbers: Vec<f32>,
    rows: [Vec<u8>; 2],
}

impl Transcoder {
    /// From these types of K and V to those.
    #[must_use]
    pub fn new(cache: [RowFormat; 2], store: [RowFormat; 2]) -> Self {
        Self::of([(cache[0], store[0]), (cache[1], store[1])])
    }

    /// One of the same types, for another thread.
    #[must_use]
    pub fn another(&self) -> Self {
        Self::of(self.kinds)
    }

    fn of(kinds: [(RowFormat, RowFormat); 2]) -> Self {
        Self {
            kinds,
            numbers: Vec::new(),
            rows: Default::default(),
        }
    }

    /// Whether rows change on their way.
    #[must_use]
    pub fn converts(&self) -> bool {
        self.kinds.iter().any(|(cache, store)| cache != store)
    }

    /// K and V rows as they are to be stored.
    pub fn encode<'a>(&'a mut self, keys: &'a [u8], values: &'a [u8]) -> [&'a [u8]; 2] {
        let Self {
            kinds,
            numbers,
            rows,
        } = self;
        let mut given = [keys, values];
        for (((cache, store), rows), given) in kinds.iter().zip(rows).zip(&mut given) {
            if cache != store {
                convert(*cache, given, *store, numbers, rows);
                *given = rows;
            }
        }
        given
    }

    /// Rows as the cache wants them.
    pub fn decode<'a>(&'a mut self, rows: Rows<'a>, cache: RowFormat) -> Rows<'a> {
        if rows.format == cache {
            return rows;
        }
        convert(
            rows.format,
            rows.bytes,
            cache,
            &mut self.numbers,
            &mut self.rows[0],
        );
        Rows {
            format: cache,
            row_len: rows.row_len,
            bytes: &self.rows[0],
        }
    }
}

/// Turns whole groups of one type into another's; `numbers` is scratch.
///
/// # Panics
/// If `bytes` are not whole groups of both types.
pub fn convert(
    from: RowFormat,
    bytes: &[u8],
    to: RowFormat,
    numbers: &mut Vec<f32>,
    out: &mut Vec<u8>,
) {
    let n = bytes.len() / from.group_bytes() * from.group_len();
    numbers.resize(n, 0.0);
    from.decode(bytes, numbers);
    out.clear();
    to.encode_into(numbers, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_stored_comes_back_as_near_as_its_type_allows() {
        let values: Vec<f32> = (0..256)
            .map(|i| ((i * 37 % 101) as f32 - 50.0) / 9.0)
            .collect();
        let cache = RowFormat::F16.encode(&values);
        for (store, step) in [
            (RowFormat::F16, 0.0),
            (RowFormat::Q8_0, 5.6 / 127.0),
            (RowFormat::Q4_0, 5.6 / 7.0),
        ] {
            let mut coder = Transcoder::new([RowFormat::F16; 2], [store, RowFormat::F16]);
            assert_eq!(coder.converts(), store != RowFormat::F16);
            let [keys, same] = coder.encode(&cache, &cache).map(<[u8]>::to_vec);
            assert_eq!(same, cache);
            assert_eq!(keys, convert_once(&cache, store));
            assert_eq!(keys.len(), store.row_bytes(256));
            let rows = Rows {
                format: store,
                row_len: 64,
                bytes: &keys,
            };
            let back = coder.decode(rows, RowFormat::F16);
            assert_eq!((back.format, back.n_rows()), (RowFormat::F16, 4));
            let mut numbers = Vec::new();
            back.decode_into(&mut numbers);
            for (got, want) in numbers.iter().zip(&values) {
                assert!(
                    (got - want).abs() <= step + 0.01,
                    "{store}: {got} for {want}"
                );
            }
            // Converting again changes nothing more: a block that was swapped
            // in and sealed again is the same.
            let again = convert_once(back.bytes, store);
            let mut twice = Vec::new();
            convert(store, &again, RowFormat::F16, &mut Vec::new(), &mut twice);
            let mut numbers_again = vec![0.0; 256];
            RowFormat::F16.decode(&twice, &mut numbers_again);
            for (a, b) in numbers.iter().zip(&numbers_again) {
                assert!((a - b).abs() <= step / 8.0, "{store}: {a} became {b}");
            }
        }
    }

    fn convert_once(bytes: &[u8], to: RowFormat) -> Vec<u8> {
        let mut out = Vec::new();
        convert(RowFormat::F16, bytes, to, &mut Vec::new(), &mut out);
        out
    }
}
