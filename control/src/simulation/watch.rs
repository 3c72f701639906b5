//! The library's watch channel, with waiters that are woken in the order in which they came: tokio's wakes them in
//! an order drawn at random, which no seed repeats.

use std::pin::pin;
use std::sync::Arc;

use openraft::rt::watch::{RecvError, SendError, Watch, WatchReceiver, WatchSender};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::{Notify, watch};

/// A watch channel in order.
#[derive(Debug)]
pub(crate) struct OrderedWatch;

/// The end that sets the value.
#[derive(Debug)]
pub(crate) struct Sender<T> {
    // Dropped first, so that whoever is woken finds it closed.
    inner: watch::Sender<T>,
    bell: Bell,
}

/// The end that follows the value.
#[derive(Debug)]
pub(crate) struct Receiver<T> {
    inner: watch::Receiver<T>,
    changed: Arc<Notify>,
}

/// Rings when it is dropped, too.
#[derive(Clone, Debug)]
struct Bell(Arc<Notify>);

impl Drop for Bell {
    fn drop(&mut self) {
        self.0.notify_waiters();
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), bell: self.bell.clone() }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), changed: Arc::clone(&self.changed) }
    }
}

impl Watch for OrderedWatch {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Receiver<T>;
    type Ref<'a, T: OptionalSend + 'a> = watch::Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Receiver<T>) {
        let (sender, receiver) = watch::channel(init);
        let changed = Arc::new(Notify::new());
        let bell = Bell(Arc::clone(&changed));
        (Sender { inner: sender, bell }, Receiver { inner: receiver, changed })
    }
}

impl<T> WatchSender<OrderedWatch, T> for Sender<T>
where
    T: OptionalSend + OptionalSync,
{
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        self.inner.send(value).map_err(|unsent| SendError(unsent.0))?;
        self.bell.0.notify_waiters();
        Ok(())
    }

    fn send_if_modified<F>(&self, modify: F) -> bool
    where
        F: FnOnce(&mut T) -> bool,
    {
        let modified = self.inner.send_if_modified(modify);
        if modified {
            self.bell.0.notify_waiters();
        }
        modified
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.inner.borrow()
    }

    fn subscribe(&self) -> Receiver<T> {
        Receiver { inner: self.inner.subscribe(), changed: Arc::clone(&self.bell.0) }
    }
}

impl<T> WatchReceiver<OrderedWatch, T> for Receiver<T>
where
    T: OptionalSend + OptionalSync,
{
    async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            match self.inner.has_changed() {
                Ok(true) => break,
                Ok(false) => changed.await,
                // The last value is still to be seen; there is nothing to wait for.
                Err(_closed) => return self.inner.changed().await.map_err(|_seen| RecvError(())),
            }
        }
        self.inner.mark_unchanged();
        Ok(())
    }

    fn borrow_watched(&self) -> watch::Ref<'_, T> {
        self.inner.borrow()
    }

    fn borrow_and_update(&mut self) -> watch::Ref<'_, T> {
        self.inner.borrow_and_update()
    }
}
