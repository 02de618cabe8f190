//! `window`: attention sinks and the recent window, nothing else.

use kiv_policy::{Geometry, Policy, PolicyError, SelectRequest, Selection};

/// StreamingLLM (Xiao et al., arXiv 2309.17453): rows that leave the window
/// are gone. The baseline that shows what retrieval is for.
#[derive(Clone, Copy, Debug, Default)]
pub struct Window;

impl Policy for Window {
    fn name(&self) -> &'static str {
        "window"
    }

    fn retrieves(&self) -> bool {
        false
    }

    fn start(&mut self, _: &Geometry) -> Result<(), PolicyError> {
        Ok(())
    }

    fn select(&mut self, _: &SelectRequest<'_>, _: &mut Selection) -> Result<(), PolicyError> {
        Ok(())
    }
}
