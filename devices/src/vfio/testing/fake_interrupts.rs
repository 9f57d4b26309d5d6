//! Where interrupts go: vectors that count and lines that note.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};

use dormouse_pci::{InterruptPin, MsiMessage, VectorChange, VectorState};
use dormouse_vfio_migration::testing::Trace;
use rustix::event::{EventfdFlags, eventfd};

use super::fake_host::{EINVAL, errno};
use crate::vfio::host::{InterruptSupply, IntxLine, MsiSink};

#[derive(Debug, Clone, Copy, Default)]
pub struct FakeVector {
    pub routed: Option<MsiMessage>,
    /// The eventfd's counter.
    pub counter: u64,
    /// Messages that reached the guest.
    pub delivered: u64,
}

/// Vectors whose eventfds are counters.
pub struct FakeSink {
    fd: OwnedFd,
    vectors: Mutex<Vec<FakeVector>>,
    refuse: Mutex<bool>,
}

impl FakeSink {
    fn new(count: u16) -> Arc<Self> {
        Arc::new(Self {
            fd: eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
            vectors: Mutex::new(vec![FakeVector::default(); count.into()]),
            refuse: Mutex::new(false),
        })
    }

    pub fn vector(&self, vector: usize) -> FakeVector {
        self.vectors.lock().unwrap()[vector]
    }

    pub fn set_refusing(&self, refuse: bool) {
        *self.refuse.lock().unwrap() = refuse;
    }
}

impl MsiSink for FakeSink {
    fn len(&self) -> usize {
        self.vectors.lock().unwrap().len()
    }

    fn apply(&self, changes: &[VectorChange]) -> io::Result<()> {
        if *self.refuse.lock().unwrap() {
            return Err(errno(EINVAL));
        }
        let mut vectors = self.vectors.lock().unwrap();
        for change in changes {
            let vector = &mut vectors[usize::from(change.vector)];
            vector.routed = match change.after {
                VectorState::Masked => None,
                VectorState::Unmasked(message) => Some(message),
            };
            if vector.routed.is_some() {
                vector.delivered += std::mem::take(&mut vector.counter);
            }
        }
        Ok(())
    }

    fn eventfd(&self, _vector: u16) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    fn take_pending(&self, vector: u16) -> bool {
        let vector = &mut self.vectors.lock().unwrap()[usize::from(vector)];
        vector.routed.is_none() && std::mem::take(&mut vector.counter) > 0
    }

    fn signal(&self, vector: u16) {
        let vector = &mut self.vectors.lock().unwrap()[usize::from(vector)];
        if vector.routed.is_some() {
            vector.delivered += 1;
        } else {
            vector.counter += 1;
        }
    }

    fn routed(&self, vector: u16) -> Option<MsiMessage> {
        self.vectors.lock().unwrap()[usize::from(vector)].routed
    }
}

/// A line that records what is done to it.
pub struct FakeLine {
    trigger: OwnedFd,
    resample: OwnedFd,
    trace: Trace,
}

impl IntxLine for FakeLine {
    fn gsi(&self) -> u32 {
        17
    }

    fn connect(&self, connected: bool) -> io::Result<()> {
        self.trace
            .note("line", if connected { "connect" } else { "disconnect" });
        Ok(())
    }

    fn trigger(&self) -> BorrowedFd<'_> {
        self.trigger.as_fd()
    }

    fn resample(&self) -> BorrowedFd<'_> {
        self.resample.as_fd()
    }

    fn raise(&self) {
        self.trace.note("line", "raise");
    }
}

/// Hands out fakes and keeps them.
pub struct FakeSupply {
    pub trace: Trace,
    pub sink: Mutex<Option<Arc<FakeSink>>>,
}

impl InterruptSupply for FakeSupply {
    fn vectors(&self, count: u16) -> io::Result<Arc<dyn MsiSink>> {
        let sink = FakeSink::new(count);
        *self.sink.lock().unwrap() = Some(Arc::clone(&sink));
        Ok(sink)
    }

    fn intx(&self, pin: InterruptPin) -> io::Result<Option<Arc<dyn IntxLine>>> {
        assert_eq!(pin, InterruptPin::A);
        let fd = || eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        let trace = self.trace.clone();
        Ok(Some(Arc::new(FakeLine {
            trigger: fd(),
            resample: fd(),
            trace,
        })))
    }
}
