//! llama.cpp's compute threads.
//!
//! Between two pieces of a graph they spin, to be there at once for the next.
//! So they are there at once for a policy, too ([`Helpers`]): its work is a graph of one
//! node for them. While a policy that has threads of its own scores blocks they would take
//! its cores, so they are put to sleep first; the next piece of graph wakes them. (OpenMP's
//! threads, which llama.cpp uses when built with it, cannot be told.)

use foreign::Foreign;
use kiv_policy::Helpers;
use llama_cpp_sys_2 as sys;

/// How long idle threads spin before they sleep, in llama.cpp's units of
/// 128 K pauses: some milliseconds.
const POLL: u32 = 1;

/// A set of compute threads.
#[derive(Debug)]
pub(super) struct Threads {
    pool: *mut sys::ggml_threadpool,
    /// Work that is not llama.cpp's, where it can be given to them.
    foreign: Option<Foreign>,
}

// SAFETY: ggml's thread pools are locked inside and belong to no thread.
unsafe impl Send for Threads {}

impl Threads {
    /// Starts `n` threads (the caller's counts as one).
    pub(super) fn start(n: i32) -> Option<Self> {
        super::backend();
        // SAFETY: plain parameters; null means failure.
        let pool = unsafe {
            let mut params = sys::ggml_threadpool_params_default(n);
            params.poll = POLL;
            calls::new(&raw mut params)
        };
        (!pool.is_null()).then(|| Self {
            pool,
            // SAFETY: `drop` drops it before the pool is freed.
            foreign: unsafe { Foreign::new(pool, n) },
        })
    }

    /// Themselves, for the work of others, while no graph is computed.
    pub(super) fn helpers(&self) -> &dyn Helpers {
        match &self.foreign {
            Some(foreign) => foreign,
            None => &kiv_policy::Alone,
        }
    }

    /// Makes a context compute on these threads.
    ///
    /// # Safety
    /// `context` must be live and be freed before `self` is dropped.
    pub(super) unsafe fn attach(&self, context: *mut sys::llama_context) {
        // SAFETY: both are live; null is "the same for batches".
        unsafe { sys::llama_attach_threadpool(context, self.pool, std::ptr::null_mut()) };
    }

    /// Puts idle threads to sleep until they are needed.
    pub(super) fn rest(&self) {
        // SAFETY: the pool is live; called while nothing is computed.
        unsafe { calls::pause(self.pool) };
    }
}

impl Drop for Threads {
    fn drop(&mut self) {
        drop(self.foreign.take());
        // SAFETY: made in `start`, and no context uses it any more.
        unsafe { calls::free(self.pool) };
    }
}

/// Work of others as a graph for the threads.
mod foreign {
    use super::{Helpers, calls, sys};
    use parking_lot::Mutex;
    use std::any::Any;
    use std::cell::Cell;
    use std::ffi::{c_int, c_void};
    use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
    use std::ptr::null_mut;

    /// As many tasks of a node as there are threads.
    const ALL_THREADS: c_int = -1;

    /// Nodes that the graph has room for.
    const NODES: usize = 4;

    /// What the node does.
    #[derive(Default)]
    struct Job {
        /// Lives as long as the graph is being computed.
        work: Cell<Option<*const (dyn Fn() + Sync)>>,
        panic: Mutex<Option<Box<dyn Any + Send>>>,
    }

    /// A graph of one node, which does whatever is given.
    pub(super) struct Foreign {
        /// ggml's CPU, on the threads of the pool.
        cpu: *mut sys::ggml_backend,
        n: c_int,
        context: *mut sys::ggml_context,
        graph: *mut sys::ggml_cgraph,
        job: Box<Job>,
        /// Held while the graph is computed.
        busy: Mutex<()>,
    }

    // SAFETY: the pool belongs to no thread; who holds `busy` is alone with all the rest, but
    // for the threads that compute for it, which look at the job only while it waits.
    unsafe impl Send for Foreign {}
    // SAFETY: as above.
    unsafe impl Sync for Foreign {}

    impl std::fmt::Debug for Foreign {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.debug_struct("Foreign").field("n", &self.n).finish()
        }
    }

    impl Foreign {
        /// For a pool of `n` threads.
        ///
        /// # Safety
        /// The pool must be live as long as the result is.
        pub(super) unsafe fn new(pool: *mut sys::ggml_threadpool, n: c_int) -> Option<Self> {
            // SAFETY: forwarded; `drop` frees it.
            let cpu = unsafe { calls::cpu(pool, n) }?;
            let job = Box::<Job>::default();
            // SAFETY: plain sizes. Nothing but the nodes themselves is allocated, in memory
            // that is the context's own and has room for them.
            let (context, graph) = unsafe {
                let context = sys::ggml_init(sys::ggml_init_params {
                    mem_size: NODES * sys::ggml_tensor_overhead()
                        + sys::ggml_graph_overhead_custom(NODES, false),
                    mem_buffer: null_mut(),
                    no_alloc: true,
                });
                if context.is_null() {
                    sys::ggml_backend_free(cpu);
                    return None;
                }
                let any = sys::ggml_new_tensor_1d(context, sys::GGML_TYPE_F32, 1);
                let data = (&raw const *job).cast_mut().cast();
                let node = sys::ggml_map_custom1(context, any, Some(work), ALL_THREADS, data);
                let graph = sys::ggml_new_graph_custom(context, NODES, false);
                sys::ggml_build_forward_expand(graph, node);
                (context, graph)
            };
            Some(Self {
                cpu,
                n,
                context,
                graph,
                job,
                busy: Mutex::new(()),
            })
        }
    }

    impl Helpers for Foreign {
        fn n(&self) -> usize {
            usize::try_from(self.n).unwrap_or(1)
        }

        fn run(&self, work: &(dyn Fn() + Sync)) {
            let Some(_busy) = self.busy.try_lock() else {
                return work();
            };
            // SAFETY: a reference's lifetime is let go of; it ends after this function, and
            // the pointer is forgotten before.
            let lent: *const (dyn Fn() + Sync) =
                unsafe { std::mem::transmute::<&(dyn Fn() + Sync), _>(work) };
            self.job.work.set(Some(lent));
            // SAFETY: the pool is live, and computes nothing: its graphs are computed by the
            // thread that this is called on or waited for by, one after another, and this one
            // under `busy`. The node has no data, and needs no memory to work in.
            let status = unsafe { sys::ggml_backend_graph_compute(self.cpu, self.graph) };
            self.job.work.set(None);
            if let Some(panic) = self.job.panic.lock().take() {
                resume_unwind(panic);
            }
            if status != sys::GGML_STATUS_SUCCESS {
                // Whatever is left of it.
                work();
            }
        }
    }

    impl Drop for Foreign {
        fn drop(&mut self) {
            // SAFETY: made in `new`; nothing is computed any more.
            unsafe {
                sys::ggml_free(self.context);
                sys::ggml_backend_free(self.cpu);
            }
        }
    }

    /// What each of the threads does.
    // SAFETY (of calling it): `job` must be a `Job`, which lives on and in which nobody else
    // sets the work meanwhile. ggml calls it with the node's data, within `run`.
    unsafe extern "C" fn work(
        _: *mut sys::ggml_tensor,
        _: *const sys::ggml_tensor,
        _: c_int,
        _: c_int,
        job: *mut c_void,
    ) {
        // SAFETY: the node's data is the job, which lives as long as the node; it is not
        // changed while there is work, but for what is locked.
        let job = unsafe { &*job.cast::<Job>() };
        let Some(work) = job.work.get() else { return };
        // SAFETY: `run` has it from a reference that outlives the computing of the graph, and
        // shares it with any number of threads.
        let work = unsafe { &*work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(work)) {
            *job.panic.lock() = Some(panic);
        }
    }

    #[cfg(test)]
    mod tests {
        use super::super::Threads;
        use super::*;
        use std::sync::Barrier;
        use std::sync::atomic::{AtomicUsize, Ordering};

        #[test]
        fn all_threads_work_at_once() {
            let threads = Threads::start(3).unwrap();
            let helpers = threads.helpers();
            assert_eq!(helpers.n(), 3);
            for round in 0..100 {
                if round % 10 == 0 {
                    // Asleep or not.
                    threads.rest();
                }
                let (met, done) = (Barrier::new(3), AtomicUsize::new(0));
                helpers.run(&|| {
                    met.wait();
                    done.fetch_add(1, Ordering::Relaxed);
                });
                assert_eq!(done.into_inner(), 3);
            }
        }

        #[test]
        fn a_call_within_a_call_is_served_alone() {
            let threads = Threads::start(2).unwrap();
            let (helpers, done) = (threads.helpers(), AtomicUsize::new(0));
            helpers.run(&|| {
                helpers.run(&|| {
                    done.fetch_add(1, Ordering::Relaxed);
                });
            });
            assert_eq!(done.into_inner(), 2);
        }

        #[test]
        fn panics_are_the_callers() {
            let threads = Threads::start(2).unwrap();
            let helpers = threads.helpers();
            let caller = std::thread::current().id();
            for is_caller in [true, false] {
                let work = || assert!((std::thread::current().id() == caller) != is_caller);
                assert!(catch_unwind(AssertUnwindSafe(|| helpers.run(&work))).is_err());
            }
            // And things go on.
            helpers.run(&|| ());
        }
    }
}

/// The CPU backend's functions, by their names: it may be linked in, or have been loaded.
mod calls {
    use llama_cpp_sys_2 as sys;
    use std::ffi::{CStr, c_int};

    // SAFETY (of calling them): the contracts are ggml-cpu.h's.
    type New = unsafe extern "C" fn(*mut sys::ggml_threadpool_params) -> *mut sys::ggml_threadpool;
    type Free = unsafe extern "C" fn(*mut sys::ggml_threadpool);
    type SetPool = unsafe extern "C" fn(*mut sys::ggml_backend, *mut sys::ggml_threadpool);
    type SetNumber = unsafe extern "C" fn(*mut sys::ggml_backend, c_int);

    /// The CPU among ggml's devices, null if there is none.
    fn device() -> *mut sys::ggml_backend_device {
        // SAFETY: looks among the devices there are.
        unsafe { sys::ggml_backend_dev_by_type(sys::GGML_BACKEND_DEVICE_TYPE_CPU) }
    }

    /// # Safety
    /// `T` must be the type of the function of this name, or a null pointer's.
    unsafe fn find<T: Copy>(name: &CStr) -> Option<T> {
        const { assert!(size_of::<T>() == size_of::<*mut ()>()) };
        let device = device();
        if device.is_null() {
            return None;
        }
        // SAFETY: backends stay once they are there.
        let address = unsafe {
            let registry = sys::ggml_backend_dev_backend_reg(device);
            sys::ggml_backend_reg_get_proc_address(registry, name.as_ptr())
        };
        // SAFETY: the contract of `find`; null is ruled out.
        (!address.is_null()).then(|| unsafe { std::mem::transmute_copy(&address) })
    }

    /// # Safety
    /// As ggml's function of the same name.
    pub(super) unsafe fn new(
        params: *mut sys::ggml_threadpool_params,
    ) -> *mut sys::ggml_threadpool {
        // SAFETY: the type is that of ggml-cpu.h.
        let function = unsafe { find::<New>(c"ggml_threadpool_new") };
        // SAFETY: forwarded.
        function.map_or(std::ptr::null_mut(), |f| unsafe { f(params) })
    }

    /// # Safety
    /// As ggml's function of the same name.
    pub(super) unsafe fn free(pool: *mut sys::ggml_threadpool) {
        // SAFETY: the type is that of ggml-cpu.h.
        if let Some(f) = unsafe { find::<Free>(c"ggml_threadpool_free") } {
            // SAFETY: forwarded.
            unsafe { f(pool) };
        }
    }

    /// A backend that computes on the `n` threads of a pool, which whoever gets it frees.
    ///
    /// # Safety
    /// The pool must be live as long as the backend is.
    pub(super) unsafe fn cpu(
        pool: *mut sys::ggml_threadpool,
        n: c_int,
    ) -> Option<*mut sys::ggml_backend> {
        // SAFETY: the types are those of ggml-cpu.h and ggml-backend.h.
        let (set_pool, set_n) = unsafe {
            (
                find::<SetPool>(c"ggml_backend_cpu_set_threadpool")?,
                find::<SetNumber>(c"ggml_backend_set_n_threads")?,
            )
        };
        // SAFETY: there is that device, since it has functions; the rest is forwarded.
        unsafe {
            let cpu = sys::ggml_backend_dev_init(device(), std::ptr::null());
            if cpu.is_null() {
                return None;
            }
            set_n(cpu, n);
            set_pool(cpu, pool);
            Some(cpu)
        }
    }

    #[cfg(not(feature = "dynamic-backends"))]
    pub(super) use sys::ggml_threadpool_pause as pause;

    /// Loadable backends do not export it: threads spin out their time.
    ///
    /// # Safety
    /// None needed.
    #[cfg(feature = "dynamic-backends")]
    pub(super) unsafe fn pause(_: *mut sys::ggml_threadpool) {}
}
