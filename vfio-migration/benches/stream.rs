//! How much of a data descriptor's own rate a session keeps.
//!
//! A memory file stands for the device: first it is read with plain read calls, then through a save
//! session into a writer that drops everything. `cargo bench -p dormouse-vfio-migration` prints both
//! rates; the target is 80 %. (`cargo test --bench stream` runs it unoptimised.)

use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use dormouse_vfio_migration::{
    BUFFER_BYTES, DataFd, IovaRange, KernelData, MigFlags, MigState, MigratableDevice, MigrationIo,
    StreamControl, group,
};

const STATE_BYTES: usize = 256 << 20;
const ROUNDS: usize = 5;

/// A device whose state is a memory file.
struct MemoryDevice {
    file: File,
    state: Mutex<MigState>,
}

impl MigrationIo for MemoryDevice {
    fn probe(&self) -> io::Result<Option<MigFlags>> {
        Ok(Some(MigFlags::STOP_COPY))
    }

    fn get_state(&self) -> io::Result<MigState> {
        Ok(*self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn set_state(&self, target: MigState) -> io::Result<Option<Box<dyn DataFd>>> {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = target;
        if target != MigState::StopCopy {
            return Ok(None);
        }
        let mut file = self.file.try_clone()?;
        file.rewind()?;
        Ok(Some(Box::new(KernelData::new(file))))
    }

    fn data_size(&self) -> io::Result<u64> {
        Ok(STATE_BYTES as u64)
    }

    fn reset(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn has_dma_logging(&self) -> io::Result<bool> {
        Ok(false)
    }

    fn dma_logging_start(&self, _page_size: u64, _ranges: &[IovaRange]) -> io::Result<u64> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn dma_logging_report(&self, _: IovaRange, _: u64, _: &mut [u64]) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn dma_logging_stop(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

fn seconds_of(mut work: impl FnMut() -> io::Result<()>) -> io::Result<f64> {
    let mut fastest = f64::MAX;
    for _ in 0..ROUNDS {
        let start = Instant::now();
        work()?;
        fastest = fastest.min(start.elapsed().as_secs_f64());
    }
    Ok(fastest)
}

fn main() -> io::Result<()> {
    let mut file = File::from(rustix::fs::memfd_create(
        "device-state",
        rustix::fs::MemfdFlags::CLOEXEC,
    )?);
    let piece = vec![0x5a; BUFFER_BYTES];
    for _ in 0..STATE_BYTES / BUFFER_BYTES {
        file.write_all(&piece)?;
    }
    let mut plain = file.try_clone()?;
    let mut buffer = vec![0; BUFFER_BYTES];
    let alone = seconds_of(|| {
        plain.rewind()?;
        while plain.read(&mut buffer)? > 0 {}
        Ok(())
    })?;

    let state = Mutex::new(MigState::Running);
    let opened = MigratableDevice::open("memory", Arc::new(MemoryDevice { file, state }));
    let mut device = opened
        .map_err(io::Error::other)?
        .ok_or(io::ErrorKind::Unsupported)?;
    group::pause(&mut [&mut device], group::PeerDma::Impossible).map_err(io::Error::other)?;
    let session = seconds_of(|| {
        let saving = device.begin_saving().map_err(io::Error::other)?;
        saving
            .stream_to(&mut io::sink(), &mut StreamControl::default())
            .map(drop)
            .map_err(io::Error::other)
    })?;

    let rate = |seconds: f64| STATE_BYTES as f64 / seconds / f64::from(1 << 30);
    println!("descriptor alone {:6.2} GiB/s", rate(alone));
    println!("save session     {:6.2} GiB/s", rate(session));
    println!("kept             {:6.1} %", 100.0 * alone / session);
    Ok(())
}
