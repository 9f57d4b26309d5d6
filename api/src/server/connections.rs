//! The clients' connections: accepted up to a limit, timed out, and closed at the end.
//!
//! At the limit the connection that has been idle longest makes room, so that dead clients cannot lock others out. One that
//! waits for an action is not idle, but ends when its client closes it; a client that only sends no more is still answered.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::{sleep, timeout};

use super::Limits;
use super::activity::Activity;
use super::calls::Calls;
use super::stream::{ClientStream, FdInbox, Hangup};

/// How long an idle connection is left alone when others want in.
const GRACE: Duration = Duration::from_secs(1);
/// How often a full server looks for room.
const ROOM_POLL: Duration = Duration::from_millis(100);
/// How often it is looked whether a client still waits for its action.
const HANGUP_POLL: Duration = Duration::from_millis(200);
/// Pause after the host could not accept a connection, so that the failure cannot spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(500);
/// How long answers under way may take once the server ends.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Most bytes of a request's head.
const HEAD_LIMIT_BYTES: usize = 16 << 10;
/// Most header lines of a request.
const HEADER_LIMIT: usize = 64;

/// All connections of a server.
pub(super) struct Connections {
    calls: Arc<Calls>,
    limits: Limits,
    end: watch::Receiver<bool>,
    tasks: JoinSet<()>,
    open: Vec<(AbortHandle, Arc<Activity>)>,
}

impl Connections {
    /// No connection yet; those to come are answered by `calls` until `end` turns true.
    pub(super) fn new(calls: Calls, limits: Limits, end: watch::Receiver<bool>) -> Self {
        Self {
            calls: Arc::new(calls),
            limits,
            end,
            tasks: JoinSet::new(),
            open: Vec::new(),
        }
    }

    /// Accepts connections until the server ends.
    pub(super) async fn accept_from(&mut self, listener: &UnixListener) {
        let mut end = self.end.clone();
        loop {
            let accepted = tokio::select! {
                () = ended(&mut end) => return,
                accepted = self.accept_one(listener) => accepted,
            };
            match accepted {
                Ok(stream) => self.open(stream),
                Err(error) => {
                    tracing::warn!("cannot accept an API connection: {error}");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    }

    /// Lets the answers under way reach their clients, and closes everything.
    pub(super) async fn finish(mut self) {
        let all = async { while self.tasks.join_next().await.is_some() {} };
        if timeout(END_TIMEOUT, all).await.is_err() {
            tracing::debug!("API connections were cut off at the end");
        }
    }

    async fn accept_one(&mut self, listener: &UnixListener) -> io::Result<UnixStream> {
        while !self.has_room() {
            sleep(ROOM_POLL).await;
        }
        listener.accept().await.map(|(stream, _)| stream)
    }

    fn has_room(&mut self) -> bool {
        while self.tasks.try_join_next().is_some() {}
        self.open.retain(|(task, _)| !task.is_finished());
        if self.open.len() < self.limits.connections {
            return true;
        }
        let idle = self
            .open
            .iter()
            .filter_map(|(task, activity)| Some((activity.idle_for()?, task)));
        if let Some((_, task)) = idle
            .filter(|(idle_for, _)| *idle_for >= GRACE)
            .max_by_key(|(idle_for, _)| *idle_for)
        {
            task.abort();
        }
        false
    }

    fn open(&mut self, stream: UnixStream) {
        let activity = Activity::new();
        let connection = serve(
            stream,
            Arc::clone(&self.calls),
            Arc::clone(&activity),
            self.limits,
            self.end.clone(),
        );
        self.open.push((self.tasks.spawn(connection), activity));
    }
}

/// Waits until the server ends.
async fn ended(end: &mut watch::Receiver<bool>) {
    // An error means that nobody can end the server any more, which is an end too.
    let _ = end.wait_for(|ended| *ended).await.is_ok();
}

/// Waits until the client has gone while an action of it was under way; at other times reading from it tells.
async fn abandoned(hangup: &Hangup, activity: &Activity) {
    loop {
        sleep(HANGUP_POLL).await;
        if activity.is_busy() && hangup.has_come() {
            return;
        }
    }
}

/// Answers the requests of one client, one after the other.
async fn serve(
    stream: UnixStream,
    calls: Arc<Calls>,
    activity: Arc<Activity>,
    limits: Limits,
    mut end: watch::Receiver<bool>,
) {
    let inbox = FdInbox::default();
    let stream = ClientStream::new(stream, inbox.clone(), limits.write_timeout);
    let hangup = stream.hangup();
    let service = service_fn(|http| {
        let (calls, inbox, activity) = (Arc::clone(&calls), inbox.clone(), Arc::clone(&activity));
        async move { calls.answer(http, &inbox, &activity).await }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(HEAD_LIMIT_BYTES)
        .max_headers(HEADER_LIMIT)
        .title_case_headers(true)
        .auto_date_header(false)
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = connection.as_mut() => served,
        () = ended(&mut end) => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
        // The connection is dropped, and with it the wait for the answer.
        () = abandoned(&hangup, &activity) => Ok(()),
    };
    if let Err(error) = served {
        tracing::debug!("an API connection ended early: {error}");
    }
}
