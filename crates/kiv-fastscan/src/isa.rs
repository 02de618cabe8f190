//! Which instructions kernels use.

use std::sync::OnceLock;

use crate::arch;
use crate::scan::scan_any;
use crate::{CENTROIDS, GROUP, Lut, pack};

/// An instruction set that there are kernels for. All give the same results.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Isa {
    /// Portable code, the reference.
    Scalar,
    /// x86-64 with AVX2.
    Avx2,
    /// x86-64 with AVX-512 F and BW.
    Avx512,
    /// `AArch64` with NEON.
    Neon,
}

/// Why the instruction set that `KIV_ISA` names is not used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IsaError {
    /// No such instruction set.
    #[error("KIV_ISA={0:?} is unknown: use scalar, avx2, avx512 or neon")]
    Unknown(String),
    /// This CPU lacks it.
    #[error("KIV_ISA={0} asks for instructions that this CPU lacks (it has {list})", list = names(.1))]
    Missing(Isa, Vec<Isa>),
    /// Its kernel failed the self-test.
    #[error("KIV_ISA={0} asks for a kernel that gives wrong sums on this CPU; please report it")]
    Rejected(Isa),
}

fn names(isas: &[Isa]) -> String {
    isas.iter()
        .map(|isa| isa.name())
        .collect::<Vec<_>>()
        .join(", ")
}

impl std::fmt::Display for Isa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.name())
    }
}

/// What the self-tests found, the slowest first.
struct Found {
    available: Vec<Isa>,
    rejected: Vec<Isa>,
}

fn found() -> &'static Found {
    static FOUND: OnceLock<Found> = OnceLock::new();
    FOUND.get_or_init(|| {
        let (available, rejected) = Isa::ALL
            .into_iter()
            .filter(|&isa| arch::cpu_has(isa))
            .partition(|&isa| isa == Isa::Scalar || self_test(isa));
        Found {
            available,
            rejected,
        }
    })
}

impl Isa {
    /// All of them, of each CPU family the slowest first.
    pub const ALL: [Self; 4] = [Self::Scalar, Self::Neon, Self::Avx2, Self::Avx512];

    /// The fastest that this CPU has, or what the environment variable
    /// `KIV_ISA` names. The answer is found once per process.
    ///
    /// # Panics
    ///
    /// Panics if `KIV_ISA` cannot be followed. Programs call
    /// [`from_env`](Self::from_env) first and say so more politely.
    #[must_use]
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Isa> = OnceLock::new();
        *DETECTED.get_or_init(|| match Self::from_env() {
            Ok(forced) => forced.unwrap_or_else(Self::fastest),
            Err(error) => panic!("{error}"),
        })
    }

    /// What the environment variable `KIV_ISA` names: `scalar`, `avx2`,
    /// `avx512` or `neon`. `None` if it is unset or empty.
    ///
    /// # Errors
    ///
    /// [`IsaError`] if it names none of these, or one that cannot be used here.
    pub fn from_env() -> Result<Option<Self>, IsaError> {
        let name = std::env::var_os("KIV_ISA").unwrap_or_default();
        if name.is_empty() {
            return Ok(None);
        }
        let name = name.to_string_lossy();
        let isa = Self::ALL
            .into_iter()
            .find(|isa| isa.name() == name)
            .ok_or_else(|| IsaError::Unknown(name.into_owned()))?;
        if found().available.contains(&isa) {
            Ok(Some(isa))
        } else if found().rejected.contains(&isa) {
            Err(IsaError::Rejected(isa))
        } else {
            Err(IsaError::Missing(isa, Self::available()))
        }
    }

    /// Those that this CPU has and whose kernels passed their self-test, the
    /// slowest first.
    #[must_use]
    pub fn available() -> Vec<Self> {
        found().available.clone()
    }

    /// Those that this CPU has, but whose kernels differ from the portable one
    /// and are not used. Empty unless there is a bug.
    #[must_use]
    pub fn rejected() -> Vec<Self> {
        found().rejected.clone()
    }

    /// The name, as in `KIV_ISA`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Scalar => "scalar",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Neon => "neon",
        }
    }

    fn fastest() -> Self {
        *found()
            .available
            .last()
            .expect("portable code runs everywhere")
    }

    /// Panics unless kernels of this instruction set may run.
    #[track_caller]
    pub(crate) fn assert_available(self) {
        assert!(
            found().available.contains(&self),
            "{self} kernels cannot be used on this CPU"
        );
    }
}

/// Compares everything that is written per instruction set with the portable
/// code, on some hundred random groups. Takes a fraction of a millisecond.
fn self_test(isa: Isa) -> bool {
    // Knuth's MMIX generator; the high bits are good enough to test with.
    let mut state = 0x5eed_u64;
    let mut random = move || {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as u32
    };
    for (m, groups) in [(2, 3), (6, 3), (16, 5), (34, 3), (64, 2), (256, 1)] {
        let keys = GROUP * groups;
        let codes: Vec<u8> = (0..keys * m).map(|_| random() as u8 & 15).collect();
        let mut packed = Vec::new();
        pack(&codes, m, &mut packed);
        for highest in [255, 127, 63] {
            let luts = [1, 0xff_ffff, 0xff_ffff].map(|bits| {
                // The first table is of extremes only.
                let table: Vec<f32> = (0..m * CENTROIDS)
                    .map(|_| (random() & bits) as f32)
                    .collect();
                let mut lut = Lut::with_highest(m, highest);
                lut.quantize(&table).expect("the table is finite");
                lut
            });
            let mut expected = vec![0; luts.len() * keys];
            scan_any(Isa::Scalar, &luts, &packed, &mut expected);
            // As many queries as are scanned at once, and fewer.
            for queries in 1..=luts.len() {
                let mut found = vec![0; queries * keys];
                scan_any(isa, &luts[..queries], &packed, &mut found);
                if found != expected[..queries * keys] {
                    return false;
                }
            }
            if !selects(isa, &expected[1..]) {
                return false;
            }
        }
    }
    true
}

/// Whether selections are as the portable ones.
fn selects(isa: Isa, sums: &[u16]) -> bool {
    let thresholds = [0, sums[0], sums[1].saturating_add(1), u16::MAX];
    let at_least = thresholds.into_iter().all(|threshold| {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        arch::at_least(isa, sums, threshold, &mut found);
        arch::at_least(Isa::Scalar, sums, threshold, &mut expected);
        found == expected && arch::count_at_least(isa, sums, threshold) == expected.len()
    });
    let folded = [1, 3].into_iter().all(|fold| {
        let (mut found, mut expected) = (Vec::new(), Vec::new());
        arch::fold_max(isa, sums, fold, &mut found);
        arch::fold_max(Isa::Scalar, sums, fold, &mut expected);
        found == expected
    });
    at_least && folded
}
