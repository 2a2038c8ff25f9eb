//! A running lab.

use std::io;
use std::net::SocketAddr;
use std::ops::Deref;
use std::sync::Arc;
use std::thread::JoinHandle;

use tokio::sync::watch;

use crate::access::{KEY_ID, SECRET};
use crate::core::Core;
use crate::http;
use crate::options::Options;

/// A lab on a thread of its own; it ends, and takes its devices away, when it is dropped. What can be done with it is on [`Core`].
#[derive(Debug)]
pub struct Lab {
    core: Arc<Core>,
    address: SocketAddr,
    stop: watch::Sender<bool>,
    thread: Option<JoinHandle<()>>,
}

impl Deref for Lab {
    type Target = Core;

    fn deref(&self) -> &Core {
        &self.core
    }
}

impl Lab {
    /// Starts it. When this returns, it answers.
    pub fn start(options: Options) -> io::Result<Self> {
        let listen = options.listen;
        let core = Arc::new(Core::new(options)?);
        core.set_up(&core.options.scenario.clone())?;
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .max_blocking_threads(64)
            .thread_name("lab")
            .enable_all()
            .build()?;
        let listener = runtime.block_on(tokio::net::TcpListener::bind(listen))?;
        let address = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let serving = core.clone();
        let thread = std::thread::Builder::new().name("lab".into()).spawn(move || {
            let Ok(()) = runtime.block_on(http::run(serving, listener, stopped));
            runtime.shutdown_timeout(std::time::Duration::from_secs(5));
        })?;
        Ok(Self { core, address, stop, thread: Some(thread) })
    }

    /// `http://127.0.0.1:PORT`, for all services.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Environment variables that point AWS clients at the lab, with the access key that may do everything.
    pub fn env(&self) -> Vec<(&'static str, String)> {
        let endpoint = self.endpoint();
        vec![
            ("AWS_ENDPOINT_URL_EC2", endpoint.clone()),
            ("AWS_ENDPOINT_URL_EBS", endpoint.clone()),
            ("AWS_ENDPOINT_URL_STS", endpoint.clone()),
            ("AWS_EC2_METADATA_SERVICE_ENDPOINT", endpoint),
            ("AWS_ACCESS_KEY_ID", KEY_ID.into()),
            ("AWS_SECRET_ACCESS_KEY", SECRET.into()),
            ("AWS_REGION", self.options.region.clone()),
            ("AWS_DEFAULT_REGION", self.options.region.clone()),
        ]
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let _ = self.stop.send(true);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        self.core.devices.detach_all();
    }
}
