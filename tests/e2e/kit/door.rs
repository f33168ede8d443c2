//! A listening socket that can be shut and opened again on the same port.

use std::collections::HashMap;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};

/// The streams being served now, kept so that closing the door ends them.
type Guests = Arc<Mutex<HashMap<u64, TcpStream>>>;

/// Accepts connections and serves each of them on a thread of its own.
pub struct Door {
    addr: SocketAddr,
    open: Arc<AtomicBool>,
    guests: Guests,
    porter: Option<JoinHandle<()>>,
}

impl Door {
    /// Listens on `addr` (port 0 picks a free one).
    pub fn open(addr: SocketAddr, serve: impl Fn(TcpStream) + Send + Sync + 'static) -> Self {
        let listener = TcpListener::bind(addr).expect("a loopback address to listen on");
        let addr = listener.local_addr().expect("an address");
        let open = Arc::new(AtomicBool::new(true));
        let guests = Guests::default();
        let porter = thread::spawn({
            let (open, guests) = (open.clone(), guests.clone());
            move || welcome(&listener, &open, &guests, Arc::new(serve))
        });
        Self { addr, open, guests, porter: Some(porter) }
    }

    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Refuses newcomers from here on and cuts everybody who is inside.
    pub fn close(&mut self) {
        let Some(porter) = self.porter.take() else {
            return;
        };
        self.open.store(false, Ordering::SeqCst);
        // The porter sleeps in accept: one last knock makes it look.
        let _ = TcpStream::connect(self.addr);
        let _ = porter.join();
        for stream in self.guests.lock().unwrap().values() {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.close();
    }
}

fn welcome<S>(listener: &TcpListener, open: &AtomicBool, guests: &Guests, serve: Arc<S>)
where
    S: Fn(TcpStream) + Send + Sync + 'static,
{
    for (number, stream) in (0u64..).zip(listener.incoming()) {
        if !open.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let _ = stream.set_nodelay(true);
        let Ok(copy) = stream.try_clone() else {
            continue;
        };
        guests.lock().unwrap().insert(number, copy);
        let (serve, guests) = (serve.clone(), guests.clone());
        thread::spawn(move || {
            serve(stream);
            guests.lock().unwrap().remove(&number);
        });
    }
}
