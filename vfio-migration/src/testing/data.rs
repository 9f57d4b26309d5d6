//! The data descriptor of a scripted device.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::device::Shared;
use super::fault::Fault;
use super::model::Model;
use super::trace::Step;
use crate::device::{DataFd, PrecopyInfo};
use crate::state::MigState;

/// One direction of one session; ENODEV once that is over.
pub(super) struct ScriptedData {
    shared: Arc<Shared>,
    session: u64,
    writer: bool,
    position: u64,
}

impl ScriptedData {
    pub(super) fn new(shared: Arc<Shared>, session: u64, writer: bool) -> Self {
        Self {
            shared,
            session,
            writer,
            position: 0,
        }
    }

    fn check(&self, model: &Model, writing: bool) -> Result<(), i32> {
        if self.writer != writing {
            return Err(libc::EBADF);
        }
        if !model.session_open || model.session != self.session {
            return Err(libc::ENODEV);
        }
        Ok(())
    }

    fn try_read(&self, model: &mut Model, room: &mut [u8]) -> Result<usize, i32> {
        self.check(model, false)?;
        if model.state != MigState::StopCopy {
            return Err(libc::ENOMSG);
        }
        let position = self.position;
        let strike = model.take_fault(|fault| match fault {
            Fault::Read { at, .. } | Fault::ResetAtRead { at } => *at == position,
            _ => false,
        });
        match strike {
            Some(Fault::Read { errno, .. }) => return Err(errno),
            Some(_) => {
                model.reset();
                return Err(libc::ENODEV);
            }
            None => {}
        }
        let until_fault = model
            .next_fault_position(position, true)
            .and_then(|at| usize::try_from(at - position).ok())
            .unwrap_or(usize::MAX);
        let longest = room.len().min(model.longest_read).min(until_fault);
        Ok(model.contents.copy_to(position, &mut room[..longest]))
    }

    fn try_write(&self, model: &mut Model, bytes: &[u8]) -> Result<usize, i32> {
        self.check(model, true)?;
        let end = self.position + bytes.len() as u64;
        let Some(at) = model
            .next_fault_position(self.position, false)
            .filter(|at| *at < end)
        else {
            model.accept(bytes)?;
            return Ok(bytes.len());
        };
        let strike = model.take_fault(|fault| match fault {
            Fault::Write { at: wanted, .. } | Fault::ShortWrite { at: wanted } => *wanted == at,
            _ => false,
        });
        if let Some(Fault::Write { errno, .. }) = strike {
            let _consumed = model.accept(bytes);
            return Err(errno);
        }
        let taken = usize::try_from(at - self.position).unwrap_or(bytes.len());
        model.accept(&bytes[..taken])?;
        Ok(taken)
    }

    fn finish(&mut self, result: Result<usize, i32>, step: fn(usize) -> Step) -> io::Result<usize> {
        match result {
            Ok(bytes) => {
                self.position += bytes as u64;
                self.shared.push(step(bytes));
                Ok(bytes)
            }
            Err(errno) => {
                self.shared.push(Step::DataFailed(errno));
                Err(io::Error::from_raw_os_error(errno))
            }
        }
    }
}

impl DataFd for ScriptedData {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let result = {
            let mut model = self.shared.lock();
            model.largest_transfer = model.largest_transfer.max(buf.len());
            self.try_read(&mut model, buf)
        };
        self.finish(result, Step::Read)
    }

    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let result = {
            let mut model = self.shared.lock();
            model.count_unguarded();
            model.largest_transfer = model.largest_transfer.max(buf.len());
            self.try_write(&mut model, buf)
        };
        self.finish(result, Step::Write)
    }

    fn wait_readable(&self, _timeout: Duration) -> io::Result<bool> {
        Ok(true)
    }

    fn precopy_info(&self) -> io::Result<PrecopyInfo> {
        let model = self.shared.lock();
        self.check(&model, false)
            .map_err(io::Error::from_raw_os_error)?;
        match model.state {
            MigState::PreCopy | MigState::PreCopyP2p => Ok(PrecopyInfo::default()),
            _ => Err(io::Error::from_raw_os_error(libc::EINVAL)),
        }
    }
}

impl Drop for ScriptedData {
    fn drop(&mut self) {
        self.shared.lock().open_fds -= 1;
        self.shared.push(Step::Close);
    }
}
