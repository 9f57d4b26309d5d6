//! The way back of an answer: from whoever has done what a request asks, to the client that waits for it.

use tokio::sync::oneshot;

use crate::backend::ApiError;
use crate::response::Response;

/// Where the answer to one request goes. It may be sent from any thread; dropping it says that there will be none.
#[derive(Debug)]
pub struct Reply(oneshot::Sender<Result<Response, ApiError>>);

impl Reply {
    /// The two ends of an answer's way.
    pub fn new() -> (Self, PendingAnswer) {
        let (sender, receiver) = oneshot::channel();
        (Self(sender), PendingAnswer(receiver))
    }

    /// Gives the answer. A client that has gone away does not get it.
    pub fn send(self, answer: Result<Response, ApiError>) {
        let _ = self.0.send(answer);
    }

    /// Whether nobody waits for the answer any more.
    pub fn is_abandoned(&self) -> bool {
        self.0.is_closed()
    }
}

/// An answer that may still have to come. Dropping it abandons the request.
#[derive(Debug)]
pub struct PendingAnswer(oneshot::Receiver<Result<Response, ApiError>>);

impl PendingAnswer {
    /// Waits for the answer; `None` when there will be none. For threads without a runtime.
    pub fn wait(self) -> Option<Result<Response, ApiError>> {
        self.0.blocking_recv().ok()
    }

    /// As [`PendingAnswer::wait`], for the server.
    pub(crate) async fn arrived(self) -> Option<Result<Response, ApiError>> {
        self.0.await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::Reply;
    use crate::response::Response;

    #[test]
    fn answer_arrives_or_is_known_not_to() {
        let (reply, answer) = Reply::new();
        assert!(!reply.is_abandoned());
        reply.send(Ok(Response::Done));
        assert_eq!(answer.wait(), Some(Ok(Response::Done)));
        let (reply, answer) = Reply::new();
        drop(reply);
        assert_eq!(answer.wait(), None);
    }

    #[test]
    fn client_that_has_gone_is_noticed() {
        let (reply, answer) = Reply::new();
        drop(answer);
        assert!(reply.is_abandoned());
        reply.send(Ok(Response::Done));
    }
}
