//! Orders of KVM calls and the equality of table, kernel and model, over a fake kernel that enforces the rules of `msi`.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use dormouse_devices::vfio::host::{IntxLine, MsiSink};
use dormouse_pci::{MsiMessage, VectorChange, VectorState};
use proptest::prelude::{Just, Strategy, any, prop_assert, prop_assert_eq, prop_oneof, proptest};
use vmm_sys_util::eventfd::EventFd;

use super::{InterruptRouter, MsiVectors, Route, RouteTarget, Routes};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    SetRouting,
    Register(u32),
    RegisterResample(u32),
    Unregister(u32),
}

#[derive(Default)]
struct Kernel {
    calls: Vec<Call>,
    table: Vec<Route>,
    /// Connected eventfds and their GSIs.
    irqfds: BTreeMap<RawFd, u32>,
    fail_set_routing: bool,
    fail_register: bool,
    /// A rule was broken.
    fault: Option<&'static str>,
}

impl Kernel {
    fn routes_of(&self, gsi: u32) -> Vec<Route> {
        self.table
            .iter()
            .filter(|route| route.gsi == gsi)
            .copied()
            .collect()
    }

    fn messages(&self) -> Vec<MsiMessage> {
        let message = |route: &Route| match route.target {
            RouteTarget::Message(message) => Some(message),
            RouteTarget::Pin { .. } => None,
        };
        self.table.iter().filter_map(message).collect()
    }
}

#[derive(Default)]
struct FakeKvm(Mutex<Kernel>);

impl FakeKvm {
    fn kernel(&self) -> MutexGuard<'_, Kernel> {
        self.0.lock().unwrap()
    }

    fn take_calls(&self) -> Vec<Call> {
        std::mem::take(&mut self.kernel().calls)
    }
}

impl Routes for FakeKvm {
    fn set_routing(&self, routes: &[Route]) -> io::Result<()> {
        let mut kernel = self.kernel();
        kernel.calls.push(Call::SetRouting);
        if kernel.fail_set_routing {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        let before = std::mem::replace(&mut kernel.table, routes.to_vec());
        let connected: BTreeSet<u32> = kernel.irqfds.values().copied().collect();
        for gsi in connected {
            let old: Vec<_> = before
                .iter()
                .filter(|route| route.gsi == gsi)
                .copied()
                .collect();
            if old != kernel.routes_of(gsi) && gsi >= 24 {
                kernel.fault = Some("a route changed under a connected irqfd");
            }
        }
        Ok(())
    }

    fn register(&self, gsi: u32, trigger: &EventFd, resample: Option<&EventFd>) -> io::Result<()> {
        let mut kernel = self.kernel();
        kernel.calls.push(match resample {
            Some(_) => Call::RegisterResample(gsi),
            None => Call::Register(gsi),
        });
        if kernel.fail_register {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        if gsi >= 24 && kernel.routes_of(gsi).len() != 1 {
            kernel.fault = Some("an irqfd was connected before its route");
        }
        if kernel.irqfds.insert(trigger.as_raw_fd(), gsi).is_some() {
            return Err(io::Error::from_raw_os_error(libc::EBUSY));
        }
        Ok(())
    }

    fn unregister(&self, gsi: u32, trigger: &EventFd) -> io::Result<()> {
        let mut kernel = self.kernel();
        kernel.calls.push(Call::Unregister(gsi));
        if kernel.irqfds.remove(&trigger.as_raw_fd()) != Some(gsi) {
            kernel.fault = Some("an irqfd was disconnected that was not connected");
        }
        Ok(())
    }
}

fn message(data: u32) -> MsiMessage {
    MsiMessage {
        address: 0xfee0_1000,
        data,
    }
}

fn change(vector: u16, after: VectorState) -> VectorChange {
    VectorChange {
        vector,
        before: VectorState::Masked,
        after,
        fire: false,
    }
}

fn unmask(vector: u16, data: u32) -> VectorChange {
    change(vector, VectorState::Unmasked(message(data)))
}

fn mask(vector: u16) -> VectorChange {
    change(vector, VectorState::Masked)
}

fn machine(limit: u32, vectors: u16) -> (Arc<FakeKvm>, Arc<InterruptRouter>, MsiVectors) {
    let kvm = Arc::new(FakeKvm::default());
    let router = InterruptRouter::new(Arc::clone(&kvm) as _, limit);
    let function = router.msi_vectors(vectors).unwrap();
    (kvm, router, function)
}

#[test]
fn a_batch_is_one_table_update_between_disconnects_and_connects() {
    let (kvm, _, function) = machine(4096, 4);
    function
        .apply(&[unmask(0, 1), unmask(1, 2), unmask(2, 3)])
        .unwrap();
    assert_eq!(
        kvm.take_calls(),
        [
            Call::SetRouting,
            Call::Register(24),
            Call::Register(25),
            Call::Register(26)
        ]
    );
    function
        .apply(&[mask(0), unmask(1, 9), unmask(2, 3)])
        .unwrap();
    assert_eq!(
        kvm.take_calls(),
        [
            Call::Unregister(24),
            Call::Unregister(25),
            Call::SetRouting,
            Call::Register(25)
        ]
    );
    assert_eq!(function.routed(0), None);
    assert_eq!(function.routed(1), Some(message(9)));
    function.apply(&[mask(0), mask(3)]).unwrap();
    assert!(kvm.take_calls().is_empty(), "nothing changed");
}

#[test]
fn a_masked_vector_keeps_its_interrupt_until_it_is_taken() {
    let (_, _, function) = machine(4096, 1);
    function.signal(0);
    assert!(function.take_pending(0));
    assert!(!function.take_pending(0));
    function.apply(&[unmask(0, 1)]).unwrap();
    function.signal(0);
    assert!(
        !function.take_pending(0),
        "the count of a connected eventfd is KVM's"
    );
    function.apply(&[mask(0)]).unwrap();
    assert!(function.take_pending(0), "the fake did not take it");
}

#[test]
fn messages_outside_of_the_interrupt_window_are_not_delivered() {
    let (kvm, _, function) = machine(4096, 1);
    for address in [
        0,
        0xfec0_0000,
        0x1_fee0_0000,
        0xfeef_fffc_fee0_0000,
        u64::MAX,
    ] {
        let wild = VectorState::Unmasked(MsiMessage { address, data: 0 });
        function.apply(&[change(0, wild)]).unwrap();
        assert_eq!(function.routed(0), None, "{address:#x}");
    }
    assert!(kvm.take_calls().is_empty());
}

#[test]
fn running_out_of_routes_leaves_the_others_working() {
    let (kvm, router, function) = machine(42, 3);
    let error = function
        .apply(&[unmask(0, 1), unmask(1, 2), unmask(2, 3)])
        .unwrap_err();
    assert!(error.to_string().contains("all 2 routes"), "{error}");
    assert_eq!(
        [function.routed(0), function.routed(2)],
        [Some(message(1)), None]
    );
    drop(function);
    assert_eq!(
        (router.allocated_gsis(), kvm.kernel().messages().len()),
        (0, 0)
    );
    assert!(kvm.kernel().irqfds.is_empty());
}

#[test]
fn a_vector_that_does_not_exist_is_refused() {
    let (_, _, function) = machine(4096, 1);
    assert!(function.apply(&[unmask(1, 1)]).is_err());
}

#[test]
fn lines_of_two_functions_share_a_level_triggered_gsi() {
    let (kvm, router, _function) = machine(4096, 0);
    let lines = [router.intx(17).unwrap(), router.intx(17).unwrap()];
    for line in &lines {
        line.connect(true).unwrap();
        line.connect(true).unwrap();
    }
    assert_eq!(
        kvm.take_calls(),
        [Call::RegisterResample(17), Call::RegisterResample(17)]
    );
    lines[0].connect(false).unwrap();
    drop(lines);
    assert_eq!(
        kvm.take_calls(),
        [Call::Unregister(17), Call::Unregister(17)]
    );
}

#[derive(Debug, Clone)]
enum Step {
    Apply {
        function: usize,
        changes: Vec<(u16, Option<u32>)>,
    },
    FailSetRouting(bool),
    FailRegister(bool),
    Unplug(usize),
}

const FUNCTIONS: usize = 3;
const VECTORS: u16 = 5;

fn step() -> impl Strategy<Value = Step> {
    let changes = proptest::collection::btree_map(0..VECTORS, proptest::option::of(0u32..4), 1..4);
    let apply = (0..FUNCTIONS, changes).prop_map(|(function, changes)| Step::Apply {
        function,
        changes: changes.into_iter().collect(),
    });
    prop_oneof![
        8 => apply,
        1 => any::<bool>().prop_map(Step::FailSetRouting),
        1 => any::<bool>().prop_map(Step::FailRegister),
        1 => (0..FUNCTIONS).prop_map(Step::Unplug),
        1 => Just(Step::FailSetRouting(false)),
    ]
}

proptest! {
    /// A limit that three functions exceed, failures at any step, unplugging in between: the rules hold at each call, the
    /// kernel's table holds exactly the messages that the functions say they deliver, and nothing is left at the end.
    #[test]
    fn table_kernel_and_model_agree(steps in proptest::collection::vec(step(), 1..60)) {
        let kvm = Arc::new(FakeKvm::default());
        let router = InterruptRouter::new(Arc::clone(&kvm) as _, 50);
        let mut functions: Vec<_> = (0..FUNCTIONS).map(|_| router.msi_vectors(VECTORS).unwrap()).collect();
        let mut model = vec![BTreeMap::<u16, MsiMessage>::new(); FUNCTIONS];
        for step in steps {
            match step {
                Step::Apply { function, changes } => {
                    let batch: Vec<_> = changes
                        .iter()
                        .map(|&(vector, data)| data.map_or(mask(vector), |data| unmask(vector, data)))
                        .collect();
                    let outcome = functions[function].apply(&batch);
                    for (vector, data) in changes {
                        let routed = functions[function].routed(vector);
                        let asked = data.map(message);
                        // What failed is detached, never half connected or connected to something else.
                        prop_assert!(routed == asked || (outcome.is_err() && routed.is_none()));
                        match routed {
                            Some(message) => model[function].insert(vector, message),
                            None => model[function].remove(&vector),
                        };
                    }
                }
                Step::FailSetRouting(fail) => kvm.kernel().fail_set_routing = fail,
                Step::FailRegister(fail) => kvm.kernel().fail_register = fail,
                Step::Unplug(function) => {
                    functions[function] = router.msi_vectors(VECTORS).unwrap();
                    model[function].clear();
                }
            }
            let kernel = kvm.kernel();
            prop_assert_eq!(kernel.fault, None);
            let delivered = model.iter().flat_map(BTreeMap::values).count();
            prop_assert_eq!(kernel.irqfds.len(), delivered);
            for (function, vectors) in functions.iter().zip(&model) {
                for (&vector, &message) in vectors {
                    let gsi = kernel.irqfds[&function.eventfd(vector).as_raw_fd()];
                    prop_assert_eq!(kernel.routes_of(gsi), [Route { gsi, target: RouteTarget::Message(message) }]);
                }
            }
            drop(kernel);
        }
        {
            let mut kernel = kvm.kernel();
            kernel.fail_set_routing = false;
            kernel.fail_register = false;
        }
        // One successful update, and the kernel has the model's routes and no other.
        functions[0].apply(&[unmask(0, 100)]).ok();
        if functions[0].routed(0).is_some() {
            model[0].insert(0, message(100));
            let delivered = model.iter().flat_map(BTreeMap::values).count();
            prop_assert_eq!(kvm.kernel().messages().len(), delivered);
        }
        drop(functions);
        prop_assert_eq!(router.allocated_gsis(), 0);
        prop_assert!(kvm.kernel().irqfds.is_empty());
    }
}
