//! Tests of each mode with real files, pipes, terminals and sockets, and a real event loop.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use event_manager::{EventManager, SubscriberOps};
use rustix::fs::{Mode, OFlags};
use rustix::termios::LocalModes;

use super::*;
use crate::testing::{CountingIrq, read_u8, write_u8};

const DATA: u64 = 0;
const LSR: u64 = 5;

/// A console, its main loop, and a guest with a serial port.
struct Setup {
    events: EventManager<ConsoleSubscriber>,
    console: Console,
    port: Arc<SerialPort>,
    quit: Arc<AtomicBool>,
}

impl Setup {
    fn new(mode: &ConsoleMode) -> Self {
        Self::with(Endpoint::open(mode).unwrap())
    }

    fn with(endpoint: Endpoint) -> Self {
        let quit = Arc::<AtomicBool>::default();
        let on_quit = Arc::clone(&quit);
        let on_quit = Box::new(move || on_quit.store(true, Ordering::Relaxed));
        let (console, subscriber) = Console::with_endpoint(endpoint, on_quit).unwrap();
        let mut events = EventManager::new().unwrap();
        events.add_subscriber(subscriber);
        let port = new_port(&console);
        console.attach(port.clone());
        Self {
            events,
            console,
            port,
            quit,
        }
    }

    fn send(&self, text: &[u8]) {
        for &byte in text {
            write_u8(&*self.port, DATA, byte);
        }
    }

    /// Runs the main loop until `done`, at most five seconds.
    #[track_caller]
    fn run_until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !done(self) {
            assert!(Instant::now() < deadline, "nothing happens");
            self.events.run_with_timeout(10).unwrap();
        }
    }

    /// The main loop comes to rest: no event is left that fires again and again.
    #[track_caller]
    fn assert_idle(&mut self) {
        let idle = (0..100).any(|_| self.events.run_with_timeout(20).unwrap() == 0);
        assert!(idle, "the main loop spins");
    }

    /// Runs the main loop while the guest reads, until it has `len` bytes.
    #[track_caller]
    fn guest_reads(&mut self, len: usize) -> Vec<u8> {
        let mut got = Vec::new();
        self.run_until(|setup| {
            got.extend(drain_port(&setup.port));
            got.len() >= len
        });
        got
    }
}

fn new_port(console: &Console) -> Arc<SerialPort> {
    let irq = Arc::<CountingIrq>::default();
    Arc::new(SerialPort::new(irq, console.backend()))
}

fn drain_port(port: &SerialPort) -> Vec<u8> {
    std::iter::from_fn(|| (read_u8(port, LSR) & 1 != 0).then(|| read_u8(port, DATA))).collect()
}

#[track_caller]
fn expect(reader: &mut impl Read, text: &[u8]) {
    let mut got = vec![0; text.len()];
    reader.read_exact(&mut got).unwrap();
    assert_eq!(got, text);
}

fn stdio(input: impl AsFd, output: impl AsFd) -> Setup {
    Setup::with(tty::open_on(input, output).unwrap())
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| (at % 251) as u8).collect()
}

#[test]
fn file_is_private_and_appended_to() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    for text in ["one ", "two"] {
        Setup::new(&ConsoleMode::File(path.clone())).send(text.as_bytes());
    }
    assert_eq!(std::fs::read(&path).unwrap(), b"one two");
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}

#[test]
fn unusable_files_are_errors_and_do_not_block() {
    let dir = tempfile::tempdir().unwrap();
    let fifo = dir.path().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, Mode::RWXU).unwrap();
    for path in [fifo.as_path(), dir.path(), Path::new("/nonexistent/log")] {
        let error = Console::open(&ConsoleMode::File(path.into()), || ()).unwrap_err();
        assert!(error.to_string().contains(&*path.to_string_lossy()));
    }
}

#[test]
fn pty_works_with_nobody_connected_and_over_reconnects() {
    let mut setup = Setup::new(&ConsoleMode::Pty);
    let path = setup.console.path().unwrap().to_path_buf();
    let connect = || {
        let flags = OFlags::RDWR | OFlags::NOCTTY;
        File::from(rustix::fs::open(&path, flags, Mode::empty()).unwrap())
    };
    setup.send(b"early\n");
    setup.assert_idle();
    for round in 0..3u8 {
        let mut user = connect();
        if round == 0 {
            expect(&mut user, b"early\n");
        }
        setup.send(&[b'0' + round, b'\n']);
        expect(&mut user, &[b'0' + round, b'\n']);
        user.write_all(b"typed\r").unwrap();
        assert_eq!(setup.guest_reads(6), b"typed\r");
        drop(user);
        setup.assert_idle();
    }
}

#[test]
fn pty_without_a_reader_does_not_stall_the_guest() {
    let mut setup = Setup::new(&ConsoleMode::Pty);
    setup.send(&vec![b'x'; 300_000]);
    setup.send(b"last words");
    setup.assert_idle();
    assert!(setup.console.dropped_bytes() > 0);
    let mut user = File::open(setup.console.path().unwrap()).unwrap();
    let (sender, received) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let mut got = Vec::new();
        let mut chunk = [0; 4096];
        while !got.ends_with(b"last words") {
            let len = user.read(&mut chunk).unwrap();
            got.extend_from_slice(&chunk[..len]);
        }
        sender.send(()).unwrap();
    });
    setup.run_until(|_| received.try_recv().is_ok());
}

#[test]
fn socket_is_private_serves_clients_in_turn_and_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let mut setup = Setup::new(&ConsoleMode::Socket(path.clone()));
    let mode = std::fs::metadata(&path).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    setup.send(b"early ");
    let mut first = UnixStream::connect(&path).unwrap();
    setup.assert_idle();
    setup.send(b"hello");
    expect(&mut first, b"early hello");
    first.write_all(b"ls\r").unwrap();
    assert_eq!(setup.guest_reads(3), b"ls\r");

    let mut second = UnixStream::connect(&path).unwrap();
    setup.assert_idle();
    assert_eq!(second.read(&mut [0]).unwrap(), 0, "one client at a time");

    drop(first);
    setup.assert_idle();
    setup.send(b"unheard ");
    let mut third = UnixStream::connect(&path).unwrap();
    setup.assert_idle();
    setup.send(b"again");
    expect(&mut third, b"unheard again");

    drop(setup);
    assert!(!path.exists());
}

#[test]
fn a_dead_client_is_replaced_while_the_guest_does_not_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let mut setup = Setup::new(&ConsoleMode::Socket(path.clone()));
    let mut first = UnixStream::connect(&path).unwrap();
    first.write_all(&[b'x'; 10_000]).unwrap();
    setup.assert_idle();
    drop(first);
    setup.assert_idle();
    let mut next = UnixStream::connect(&path).unwrap();
    setup.assert_idle();
    setup.send(b"hello");
    expect(&mut next, b"hello");
}

#[test]
fn a_client_that_only_listens_keeps_listening() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let mut setup = Setup::new(&ConsoleMode::Socket(path.clone()));
    let mut client = UnixStream::connect(&path).unwrap();
    client.write_all(b"x").unwrap();
    client.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(setup.guest_reads(1), b"x");
    setup.assert_idle();
    setup.send(b"hello");
    expect(&mut client, b"hello");
}

#[test]
fn only_a_stale_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sock");
    let mode = ConsoleMode::Socket(path.clone());
    // Dropping a listener of the standard library leaves the socket behind.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let live = Setup::new(&mode);
    assert!(matches!(
        Console::open(&mode, || ()).unwrap_err(),
        ConsoleError::SocketInUse { .. }
    ));
    // A successor at the same path is not removed by its predecessor.
    std::fs::remove_file(&path).unwrap();
    let _successor = Setup::new(&mode);
    drop(live);
    assert!(path.exists());

    let file = dir.path().join("file");
    std::fs::write(&file, "precious").unwrap();
    assert!(matches!(
        Console::open(&ConsoleMode::Socket(file.clone()), || ()).unwrap_err(),
        ConsoleError::Listen { source, .. } if source == Errno::ADDRINUSE
    ));
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
}

#[test]
fn input_waits_for_the_guest_and_nothing_is_lost() {
    let (input, mut user) = std::io::pipe().unwrap();
    let mut setup = stdio(input, File::open("/dev/null").unwrap());
    let text = pattern(20_000);
    user.write_all(&text).unwrap();
    drop(user);
    setup.assert_idle();
    assert_eq!(setup.guest_reads(text.len()), text);
    setup.assert_idle();
}

#[test]
fn input_from_a_file_is_delivered_and_ends() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("input");
    let text = pattern(20_000);
    std::fs::write(&path, &text).unwrap();
    let null = File::options().write(true).open("/dev/null").unwrap();
    let mut setup = stdio(File::open(&path).unwrap(), null);
    assert_eq!(setup.guest_reads(text.len()), text);
    setup.assert_idle();
}

#[test]
fn input_that_is_closed_or_empty_does_not_spin() {
    let null = || {
        File::options()
            .read(true)
            .write(true)
            .open("/dev/null")
            .unwrap()
    };
    stdio(null(), null()).assert_idle();
    let (input, user) = std::io::pipe().unwrap();
    drop(user);
    stdio(input, null()).assert_idle();
}

#[test]
fn input_follows_the_guest_over_a_reset() {
    let (input, mut user) = std::io::pipe().unwrap();
    let mut setup = stdio(input, File::open("/dev/null").unwrap());
    setup.console.detach();
    user.write_all(b"for the next").unwrap();
    setup.assert_idle();
    assert!(drain_port(&setup.port).is_empty());
    setup.port = new_port(&setup.console);
    setup.console.attach(setup.port.clone());
    assert_eq!(setup.guest_reads(12), b"for the next");
}

#[test]
fn output_to_a_full_pipe_waits_for_the_reader_in_the_main_loop() {
    let (mut reader, output) = std::io::pipe().unwrap();
    let mut setup = stdio(File::open("/dev/null").unwrap(), output);
    setup.send(&vec![b'x'; 400_000]);
    setup.send(b"last words");
    setup.assert_idle();
    assert!(setup.console.dropped_bytes() > 200_000);
    let lost = setup.console.dropped_bytes() as usize;
    let thread = std::thread::spawn(move || {
        let mut got = vec![0; 400_010 - lost];
        reader.read_exact(&mut got).unwrap();
        got
    });
    setup.run_until(|_| thread.is_finished());
    assert!(thread.join().unwrap().ends_with(b"last words"));
    setup.assert_idle();
}

#[test]
fn a_closed_reader_ends_the_output_only() {
    let (reader, output) = std::io::pipe().unwrap();
    let (input, mut user) = std::io::pipe().unwrap();
    let mut setup = stdio(input, output);
    drop(reader);
    setup.send(b"nobody hears this");
    setup.assert_idle();
    user.write_all(b"still here").unwrap();
    assert_eq!(setup.guest_reads(10), b"still here");
}

#[test]
fn drain_writes_what_the_main_loop_no_longer_does() {
    let (mut reader, output) = std::io::pipe().unwrap();
    let setup = stdio(File::open("/dev/null").unwrap(), output);
    setup.send(&pattern(100_000));
    let thread = std::thread::spawn(move || {
        let mut got = vec![0; 100_000];
        reader.read_exact(&mut got).unwrap();
        got
    });
    setup.console.drain(Duration::from_secs(5));
    assert_eq!(thread.join().unwrap(), pattern(100_000));
}

/// A terminal with a user at it: the user's end of the line, and ours.
fn terminal() -> (File, OwnedFd) {
    let flags = rustix::pty::OpenptFlags::RDWR | rustix::pty::OpenptFlags::NOCTTY;
    let user = rustix::pty::openpt(flags).unwrap();
    rustix::pty::unlockpt(&user).unwrap();
    let ours = rustix::pty::ioctl_tiocgptpeer(&user, flags).unwrap();
    (File::from(user), ours)
}

/// One test for all of it, since the settings to restore are the process's.
#[test]
fn terminal_is_raw_restored_and_escaped_from() {
    let (mut user, ours) = terminal();
    let settings = || rustix::termios::tcgetattr(&ours).unwrap();
    let is_raw = || {
        !settings()
            .local_modes
            .intersects(LocalModes::ICANON | LocalModes::ECHO)
    };
    let before = settings();
    assert!(!is_raw());

    let mut setup = stdio(&ours, &ours);
    assert!(is_raw());
    assert_eq!(settings().output_modes, before.output_modes);
    let status = rustix::fs::fcntl_getfl(&ours).unwrap();
    assert!(!status.contains(OFlags::NONBLOCK), "shared with the shell");
    user.write_all(b"\x03\x01a").unwrap();
    assert_eq!(setup.guest_reads(2), b"\x03\x01");
    setup.send(b"prompt$ ");
    expect(&mut user, b"prompt$ ");

    // The guest no longer reads; the way out still works.
    for _ in 0..10 {
        user.write_all(&[b'k'; 1000]).unwrap();
        setup.assert_idle();
    }
    user.write_all(b"\x01x").unwrap();
    setup.run_until(|setup| setup.quit.load(Ordering::Relaxed));

    restore_terminal();
    assert_eq!(settings().local_modes, before.local_modes);
    drop(setup);

    let setup = stdio(&ours, &ours);
    assert!(is_raw());
    drop(setup);
    assert_eq!(settings().local_modes, before.local_modes);
    assert_eq!(settings().input_modes, before.input_modes);
}

#[test]
fn a_terminal_that_hangs_up_ends_the_input_without_spinning() {
    let (user, ours) = terminal();
    let input = HostFd::inherited(ours.as_fd(), host_fd::Direction::In).unwrap();
    let mut setup = Setup::with(Endpoint {
        input: Some(Arc::new(input)),
        ..Endpoint::default()
    });
    drop(user);
    setup.assert_idle();
}

#[test]
fn null_discards_without_counting() {
    for mode in [ConsoleMode::Null, ConsoleMode::Off] {
        let mut setup = Setup::new(&mode);
        setup.send(&[b'x'; 100_000]);
        assert_eq!(setup.console.dropped_bytes(), 0);
        setup.assert_idle();
    }
}
