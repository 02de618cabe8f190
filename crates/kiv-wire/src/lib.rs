//! Numbers and lists as little-endian bytes.
//!
//! Writing is appending to a `Vec<u8>` ([`Put`]). Reading ([`Take`]) trusts
//! nothing: a list's length is checked against the bytes that are there before
//! anything is allocated, and what does not fit is a [`WireError`].

use thiserror::Error;

/// Bytes that are not what they should be.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum WireError {
    /// They end where more should follow.
    #[error("it ends early")]
    Short,
    /// More follows where they should end.
    #[error("{0} bytes too many follow")]
    Long(usize),
    /// A value that cannot be.
    #[error("{0}")]
    Invalid(String),
}

impl WireError {
    /// A value that cannot be, in words.
    pub fn invalid(what: impl Into<String>) -> Self {
        Self::Invalid(what.into())
    }
}

macro_rules! numbers {
    ($($name:ident $list:ident $put:ident $put_list:ident $type:ty;)*) => {
        /// Appends values.
        pub trait Put {
            $(
                #[doc = concat!("Appends one `", stringify!($type), "`.")]
                fn $put(&mut self, value: $type);
                #[doc = concat!("Appends a list of `", stringify!($type), "` after its length, a `u64`.")]
                fn $put_list(&mut self, values: &[$type]);
            )*
            /// Appends a text after its length in bytes, a `u64`.
            fn put_str(&mut self, text: &str);
        }

        impl Put for Vec<u8> {
            $(
                fn $put(&mut self, value: $type) {
                    self.extend_from_slice(&value.to_le_bytes());
                }
                fn $put_list(&mut self, values: &[$type]) {
                    self.put_u64(values.len() as u64);
                    self.reserve(size_of_val(values));
                    for value in values {
                        self.extend_from_slice(&value.to_le_bytes());
                    }
                }
            )*
            fn put_str(&mut self, text: &str) {
                self.put_u8s(text.as_bytes());
            }
        }

        impl Take<'_> {
            $(
                #[doc = concat!("Takes one `", stringify!($type), "`.")]
                ///
                /// # Errors
                /// [`WireError::Short`].
                pub fn $name(&mut self) -> Result<$type, WireError> {
                    let bytes = self.bytes(size_of::<$type>())?;
                    let bytes = bytes.try_into().map_err(|_| WireError::Short)?;
                    Ok(<$type>::from_le_bytes(bytes))
                }
                #[doc = concat!("Takes a list of `", stringify!($type), "` after its length.")]
                ///
                /// # Errors
                /// [`WireError::Short`].
                pub fn $list(&mut self) -> Result<Vec<$type>, WireError> {
                    let n = self.len_of(size_of::<$type>())?;
                    let bytes = self.bytes(n * size_of::<$type>())?;
                    let values = bytes.chunks_exact(size_of::<$type>());
                    values
                        .map(|b| Ok(<$type>::from_le_bytes(b.try_into().map_err(|_| WireError::Short)?)))
                        .collect()
                }
            )*
        }
    };
}

numbers! {
    u8 u8s put_u8 put_u8s u8;
    u16 u16s put_u16 put_u16s u16;
    u32 u32s put_u32 put_u32s u32;
    u64 u64s put_u64 put_u64s u64;
    i32 i32s put_i32 put_i32s i32;
    f32 f32s put_f32 put_f32s f32;
    f64 f64s put_f64 put_f64s f64;
}

/// Takes values from the front of some bytes.
#[derive(Clone, Debug)]
pub struct Take<'a> {
    rest: &'a [u8],
}

impl<'a> Take<'a> {
    /// From these bytes.
    #[must_use]
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Takes the next `n` bytes.
    ///
    /// # Errors
    /// [`WireError::Short`].
    pub fn bytes(&mut self, n: usize) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(n).ok_or(WireError::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    /// Takes bytes after their number.
    ///
    /// # Errors
    /// [`WireError::Short`].
    pub fn byte_list(&mut self) -> Result<&'a [u8], WireError> {
        let n = self.len_of(1)?;
        self.bytes(n)
    }

    /// Takes a list's length, which leaves enough bytes for elements of `size`.
    ///
    /// # Errors
    /// [`WireError::Short`].
    pub fn len_of(&mut self, size: usize) -> Result<usize, WireError> {
        let n = usize::try_from(self.u64()?).map_err(|_| WireError::Short)?;
        let fits = n
            .checked_mul(size.max(1))
            .is_some_and(|n| n <= self.rest.len());
        if fits { Ok(n) } else { Err(WireError::Short) }
    }

    /// Takes a text.
    ///
    /// # Errors
    /// [`WireError::Short`], or [`WireError::Invalid`] if it is not UTF-8.
    pub fn str(&mut self) -> Result<&'a str, WireError> {
        let bytes = self.byte_list()?;
        std::str::from_utf8(bytes).map_err(|_| WireError::invalid("a text is not UTF-8"))
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Takes all that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// Checks that nothing is left.
    ///
    /// # Errors
    /// [`WireError::Long`].
    pub fn end(self) -> Result<(), WireError> {
        if self.is_empty() {
            Ok(())
        } else {
            Err(WireError::Long(self.rest.len()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_put_is_taken() {
        let mut bytes = Vec::new();
        bytes.put_u8(7);
        bytes.put_u16s(&[1, 0x1234]);
        bytes.put_str("é");
        bytes.put_f64(-0.5);
        bytes.put_i32s(&[]);
        bytes.put_f32s(&[1.5, f32::INFINITY]);
        assert_eq!(bytes[1..11], [2, 0, 0, 0, 0, 0, 0, 0, 1, 0]);
        let read = |bytes: &[u8]| -> Result<_, WireError> {
            let mut take = Take::new(bytes);
            let read = (
                take.u8()?,
                take.u16s()?,
                take.str()?.to_owned(),
                take.f64()?,
                take.i32s()?,
                take.f32s()?,
            );
            take.end()?;
            Ok(read)
        };
        let want = (
            7,
            vec![1, 0x1234],
            "é".to_owned(),
            -0.5,
            vec![],
            vec![1.5, f32::INFINITY],
        );
        assert_eq!(read(&bytes), Ok(want));
        for n in 0..bytes.len() {
            assert_eq!(read(&bytes[..n]), Err(WireError::Short), "{n} bytes");
        }
        bytes.push(0);
        assert_eq!(read(&bytes), Err(WireError::Long(1)));
    }

    #[test]
    fn huge_lengths_allocate_nothing() {
        let bytes = u64::MAX.to_le_bytes();
        assert_eq!(Take::new(&bytes).u64s(), Err(WireError::Short));
        assert_eq!(Take::new(&bytes).str(), Err(WireError::Short));
        let mut bytes = Vec::new();
        bytes.put_u8s(&[0xff]);
        let error = Take::new(&bytes).str().unwrap_err();
        assert_eq!(error.to_string(), "a text is not UTF-8");
    }
}
