//! What a decoded token's time goes to, layer by layer.

use crate::error::Error;
use crate::session::{Session, Token};
use crate::tiers::Tiers;
use std::time::{Duration, Instant};

/// One layer's stop before its attention. Times are since the token began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LayerTimes {
    /// The model's number of the layer.
    pub il: u32,
    /// llama.cpp has stopped: what comes before has been computed, and waited for.
    pub stopped: Duration,
    /// The policy has chosen.
    pub chosen: Duration,
    /// Slots hold what was chosen, and llama.cpp goes on.
    pub brought: Duration,
}

/// A token, from its beginning to its logits.
#[derive(Clone, Debug, Default)]
pub struct Timeline {
    /// All of it.
    pub total: Duration,
    /// Its layers that retrieve, in the order of computing.
    pub layers: Vec<LayerTimes>,
    /// Transfers by the GPU's own streams, from begin to end, where it is they that swap: to
    /// slots, and ahead of what later layers want.
    pub transfers: Vec<kiv_cuda::Span>,
}

/// A timeline that is being made.
#[derive(Debug)]
pub(crate) struct Recorder {
    begin: Instant,
    layers: Vec<LayerTimes>,
}

impl Recorder {
    /// A layer goes on.
    pub(crate) fn layer(&mut self, il: u32, [stopped, chosen, brought]: [Instant; 3]) {
        let since = |moment: Instant| moment.saturating_duration_since(self.begin);
        self.layers.push(LayerTimes {
            il,
            stopped: since(stopped),
            chosen: since(chosen),
            brought: since(brought),
        });
    }
}

impl Session {
    /// Reads a token as [`Session::read_one_by_one`] does, and tells what its time goes to.
    /// Under `full` nothing stops, and no layer is told of.
    ///
    /// # Errors
    /// As there, and [`Error::Gpu`].
    pub fn read_timed(&mut self, token: Token) -> Result<Timeline, Error> {
        let gpu = |error: kiv_cuda::DeviceError| Error::Gpu(error.into());
        if let Some(tier) = self.context.hook().tiers.as_mut().and_then(Tiers::gpu) {
            tier.list().map_err(gpu)?;
        }
        let begin = Instant::now();
        if let Some(tiers) = &mut self.context.hook().tiers {
            tiers.recorder = Some(Recorder {
                begin,
                layers: Vec::new(),
            });
        }
        let read = self.read_one_by_one(&[token]);
        let mut timeline = Timeline {
            total: begin.elapsed(),
            ..Timeline::default()
        };
        let mut listed = Ok(Vec::new());
        if let Some(tiers) = &mut self.context.hook().tiers {
            let recorder = tiers.recorder.take();
            timeline.layers = recorder.map_or_else(Vec::new, |recorder| recorder.layers);
            if let Some(tier) = tiers.gpu() {
                listed = tier.listed();
            }
        }
        read?;
        timeline.transfers = listed.map_err(gpu)?;
        Ok(timeline)
    }
}
