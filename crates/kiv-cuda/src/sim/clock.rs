//! What comes before what, and when.

use crate::device::Buffer;
use crate::work::Access;
use std::time::Duration;

/// How far each stream has come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Clock(Vec<u64>);

impl Clock {
    pub(super) fn reach(&mut self, stream: usize, number: u64) {
        if self.0.len() <= stream {
            self.0.resize(stream + 1, 0);
        }
        self.0[stream] = self.0[stream].max(number);
    }

    pub(super) fn join(&mut self, other: &Self) {
        for (stream, number) in other.0.iter().enumerate() {
            self.reach(stream, *number);
        }
    }

    pub(super) fn includes(&self, stream: usize, number: u64) -> bool {
        self.0.get(stream).is_some_and(|n| *n >= number)
    }
}

/// A point in a stream of a [`super::SimDevice`].
#[derive(Clone, Debug)]
pub struct SimEvent {
    pub(super) after: Clock,
    pub(super) at: Duration,
}

/// Two accesses to the same bytes, at least one of which writes, and nothing says which
/// comes first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Race {
    /// Where.
    pub buffer: Buffer,
    /// Stream of the one that was submitted first, and which of its submissions it was.
    pub first: (usize, u64),
    /// The other.
    pub second: (usize, u64),
    /// Whether each of them writes.
    pub writes: [bool; 2],
}

/// Bytes of one buffer: sorted, disjoint stretches.
#[derive(Clone, Debug, Default)]
pub(super) struct Spans(Vec<(usize, usize)>);

impl Spans {
    /// Whether they have bytes in common.
    pub(super) fn meets(&self, other: &Self) -> bool {
        let (mut a, mut b) = (self.0.iter().peekable(), other.0.iter().peekable());
        while let (Some(x), Some(y)) = (a.peek(), b.peek()) {
            if x.0 < y.1 && y.0 < x.1 {
                return true;
            }
            if x.1 <= y.1 {
                a.next();
            } else {
                b.next();
            }
        }
        false
    }

    fn new(mut stretches: Vec<(usize, usize)>) -> Self {
        stretches.retain(|(from, to)| from < to);
        stretches.sort_unstable();
        let mut merged: Vec<(usize, usize)> = Vec::new();
        for (from, to) in stretches {
            match merged.last_mut() {
                Some(last) if from <= last.1 => last.1 = last.1.max(to),
                _ => merged.push((from, to)),
            }
        }
        Self(merged)
    }
}

/// Bytes of every buffer.
pub(super) fn spans<'a>(accesses: impl IntoIterator<Item = &'a Access>) -> Vec<(Buffer, Spans)> {
    let mut all: Vec<(Buffer, Vec<(usize, usize)>)> = Vec::new();
    for access in accesses {
        let stretch = (access.at.offset, access.at.offset + access.bytes);
        match all.iter_mut().find(|(b, _)| *b == access.at.buffer) {
            Some((_, stretches)) => stretches.push(stretch),
            None => all.push((access.at.buffer, vec![stretch])),
        }
    }
    all.into_iter().map(|(b, s)| (b, Spans::new(s))).collect()
}

struct Record {
    buffer: Buffer,
    spans: Spans,
    writes: bool,
    by: (usize, u64),
}

/// Accesses that something still to come may be in a race with.
#[derive(Default)]
pub(super) struct Order {
    records: Vec<Record>,
    races: Vec<Race>,
}

impl Order {
    pub(super) fn races(&self) -> &[Race] {
        &self.races
    }

    /// Compares an operation's accesses with all before it. Whatever the host has waited
    /// for comes before everything that is submitted later, and is forgotten.
    pub(super) fn check(
        &mut self,
        stream: usize,
        number: u64,
        after: &Clock,
        accesses: &[Access],
        host: &Clock,
    ) {
        self.records.retain(|r| !host.includes(r.by.0, r.by.1));
        let mut new = Vec::new();
        for writes in [false, true] {
            for (buffer, spans) in spans(accesses.iter().filter(|a| a.writes == writes)) {
                new.push(Record {
                    buffer,
                    spans,
                    writes,
                    by: (stream, number),
                });
            }
        }
        for new in &new {
            for old in &self.records {
                let conflict = old.buffer == new.buffer && (old.writes || new.writes);
                if conflict && !after.includes(old.by.0, old.by.1) && old.spans.meets(&new.spans) {
                    self.races.push(Race {
                        buffer: new.buffer,
                        first: old.by,
                        second: new.by,
                        writes: [old.writes, new.writes],
                    });
                }
            }
        }
        self.records.extend(new);
    }
}

/// When the bus is busy: sorted, disjoint.
#[derive(Default)]
pub(super) struct Bus(Vec<(Duration, Duration)>);

impl Bus {
    /// The first time from `ready` on when it is free for so long; from then on it is not.
    pub(super) fn take(&mut self, ready: Duration, time: Duration) -> Duration {
        let mut start = ready;
        let mut i = 0;
        for (from, to) in &self.0 {
            if start + time <= *from {
                break;
            }
            start = start.max(*to);
            i += 1;
        }
        self.0.insert(i, (start, start + time));
        start
    }

    /// Forgets what is over.
    pub(super) fn forget(&mut self, now: Duration) {
        self.0.retain(|(_, to)| *to > now);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_meet_where_bytes_are_shared() {
        let spans = |s: &[(usize, usize)]| Spans::new(s.to_vec());
        let a = spans(&[(20, 30), (0, 10), (10, 12)]);
        assert_eq!(a.0, [(0, 12), (20, 30)]);
        assert!(!a.meets(&spans(&[(12, 20), (30, 40)])));
        assert!(a.meets(&spans(&[(12, 20), (29, 40)])));
        assert!(a.meets(&spans(&[(0, 100)])) && spans(&[(0, 100)]).meets(&a));
        assert!(!a.meets(&spans(&[(5, 5)])));
    }

    #[test]
    fn the_bus_carries_one_thing_at_a_time() {
        let ms = Duration::from_millis;
        let mut bus = Bus::default();
        assert_eq!(bus.take(ms(10), ms(5)), ms(10));
        assert_eq!(bus.take(ms(12), ms(5)), ms(15), "behind what is there");
        assert_eq!(
            bus.take(ms(0), ms(10)),
            ms(0),
            "in a gap that is long enough"
        );
        assert_eq!(bus.take(ms(5), ms(1)), ms(20));
        bus.forget(ms(20));
        assert_eq!(bus.0, [(ms(20), ms(21))]);
    }
}
