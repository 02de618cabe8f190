//! Which contents something has, for whoever keeps a copy of it elsewhere.

use std::sync::Arc;

/// Equal stamps are of equal contents. Whoever keeps one to compare with keeps it alive, so
/// that no other will ever be equal to it.
#[derive(Clone, Debug, Default)]
pub struct Stamp(Arc<()>);

impl PartialEq for Stamp {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Stamp {}
