//! What API clients ask of the main loop, one request after the other.

use std::error::Error as StdError;

use dormouse_api::{ApiError, ErrorStatus, Request, Response};

use super::slot::{Slot, Vm};
use super::{Controller, Error, Outcome};
use crate::control::Call;

/// Requests that do not fit the VM's state.
#[derive(Debug, thiserror::Error)]
pub(super) enum WrongState {
    #[error("VM is already created")]
    AlreadyCreated,
    #[error("VM config is missing")]
    NoConfig,
    #[error("VM is already running")]
    AlreadyRunning,
    #[error("VM is not running")]
    NotRunning,
    #[error("VM is already paused")]
    AlreadyPaused,
    #[error("VM is not paused")]
    NotPaused,
    #[error("it was cancelled while it waited")]
    Cancelled,
    #[error("passing VFIO descriptors is not implemented; name the devices by device_paths")]
    VfioDescriptors,
}

impl WrongState {
    fn status(&self) -> ErrorStatus {
        match self {
            Self::NoConfig => ErrorStatus::NotFound,
            _ => ErrorStatus::Failed,
        }
    }
}

impl Controller {
    /// Answers a request. Returns how the main loop ends, if the request ends it.
    pub(super) fn answer(&mut self, call: Call) -> Option<Outcome> {
        let ends = matches!(call.request, Request::VmmShutdown);
        tracing::info!(request = call.request.command(), "API request");
        let answer = self.execute(call.request);
        if let Err(error) = &answer {
            tracing::error!("API request failed: {error}");
        }
        call.reply.send(answer);
        ends.then_some(Outcome::Shutdown)
    }

    fn execute(&mut self, request: Request) -> Result<Response, ApiError> {
        match request {
            Request::Create(config) => {
                if self.vm.is_some() {
                    return Err(refused(
                        "The VM could not be created",
                        &WrongState::AlreadyCreated,
                    ));
                }
                self.vm = Some(Vm::new(*config));
                self.publish();
            }
            Request::Boot => self.boot_created()?,
            Request::Pause => self.pause()?,
            Request::Resume => self.resume()?,
            Request::Shutdown => {
                self.running("The VM could not be shut down")?;
                self.end_machine(Slot::Down);
            }
            Request::Reboot => {
                let attempt = "The VM could not be rebooted";
                if self.vm.is_none() {
                    return Err(refused(attempt, &WrongState::NoConfig));
                }
                self.running(attempt)?;
                self.restart().map_err(|error| failed(attempt, &error))?;
            }
            Request::PowerButton => {
                self.running("The power button could not be pressed")?
                    .press_power_button();
            }
            Request::Delete => {
                self.end_machine(Slot::Down);
                self.close_console();
                self.vm = None;
                self.publish();
            }
            Request::VmmShutdown => {}
            Request::Snapshot(request) => self.snapshot(&request)?,
            Request::Restore(request) => self.restore_request(&request)?,
            // `Remote` answers these itself.
            Request::Ping
            | Request::Info
            | Request::Counters
            | Request::Progress
            | Request::Cancel => {}
        }
        Ok(Response::Done)
    }

    fn boot_created(&mut self) -> Result<(), ApiError> {
        let attempt = "The VM could not boot";
        match self.vm.as_ref().map(Vm::machine) {
            None => return Err(refused(attempt, &WrongState::NoConfig)),
            Some(Some(_)) => return Err(refused(attempt, &WrongState::AlreadyRunning)),
            Some(None) => {}
        }
        let outcome = self.start();
        if outcome.is_err() {
            self.end_machine(Slot::Down);
        }
        outcome.map_err(|error| match &error {
            Error::Config(cause) => ApiError::config(attempt, cause),
            error => failed(attempt, error),
        })
    }

    fn pause(&mut self) -> Result<(), ApiError> {
        let attempt = "The VM could not be paused";
        let Some(vm) = &mut self.vm else {
            return Err(refused(attempt, &WrongState::NotRunning));
        };
        let (slot, outcome) = match std::mem::replace(&mut vm.slot, Slot::InTransit) {
            Slot::Running(machine) => match machine.pause() {
                Ok(paused) => (Slot::Paused(paused), Ok(())),
                Err(refusal) => {
                    let (machine, error) = *refusal;
                    (Slot::Running(machine), Err(failed(attempt, &error)))
                }
            },
            slot @ Slot::Paused(_) => (slot, Err(refused(attempt, &WrongState::AlreadyPaused))),
            slot => (slot, Err(refused(attempt, &WrongState::NotRunning))),
        };
        self.set_slot(slot);
        outcome
    }

    fn resume(&mut self) -> Result<(), ApiError> {
        let attempt = "The VM could not be resumed";
        let Some(vm) = &mut self.vm else {
            return Err(refused(attempt, &WrongState::NotRunning));
        };
        let (slot, outcome) = match std::mem::replace(&mut vm.slot, Slot::InTransit) {
            Slot::Paused(paused) => match paused.resume() {
                Ok((machine, timeline)) => {
                    vm.timeline = timeline.or(vm.timeline.take());
                    (Slot::Running(machine), Ok(()))
                }
                Err(refusal) => {
                    let (paused, error) = *refusal;
                    (Slot::Paused(paused), Err(failed(attempt, &error)))
                }
            },
            slot @ Slot::Running(_) => (slot, Err(refused(attempt, &WrongState::NotPaused))),
            slot => (slot, Err(refused(attempt, &WrongState::NotRunning))),
        };
        self.set_slot(slot);
        outcome
    }

    /// The machine, running or paused.
    fn running(&self, attempt: &str) -> Result<&crate::machine::Machine, ApiError> {
        self.vm
            .as_ref()
            .and_then(Vm::machine)
            .ok_or_else(|| refused(attempt, &WrongState::NotRunning))
    }
}

pub(super) fn refused(attempt: &str, cause: &WrongState) -> ApiError {
    ApiError::action(cause.status(), attempt, cause)
}

pub(super) fn failed(attempt: &str, cause: &dyn StdError) -> ApiError {
    ApiError::action(ErrorStatus::Failed, attempt, cause)
}
