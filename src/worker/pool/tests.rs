use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use super::*;

/// The interpreter, as a lock; jobs are run attached, or detached when they say so.
#[derive(Default)]
struct Fake {
    interpreter: Mutex<()>,
    attaches: AtomicUsize,
    done: Mutex<Vec<u32>>,
    panics: AtomicUsize,
}

impl Work for Fake {
    type Job = (u32, Option<Duration>);

    fn attached(&self, turn: Turn<'_, Self>) {
        self.attaches.fetch_add(1, Ordering::SeqCst);
        let mut attached = Some(self.interpreter.lock().unwrap());
        turn.run(|(number, sleep)| {
            assert_ne!(number, 13, "unlucky");
            if let Some(sleep) = sleep {
                drop(attached.take());
                thread::sleep(sleep);
                attached = Some(self.interpreter.lock().unwrap());
            }
            self.done.lock().unwrap().push(number);
        });
    }

    fn settle(&self) {}

    fn panicked(&self) {
        self.panics.fetch_add(1, Ordering::SeqCst);
    }
}

fn pool(threads: usize) -> (Pool<Fake>, Arc<Fake>) {
    let work = Arc::new(Fake::default());
    let pool = Pool::new();
    assert_eq!(pool.start(threads, &work).unwrap(), threads);
    (pool, work)
}

fn wait_for(work: &Fake, count: usize) -> Vec<u32> {
    let begun = Instant::now();
    while work.done.lock().unwrap().len() < count {
        assert!(begun.elapsed() < Duration::from_secs(10), "jobs are left");
        thread::sleep(Duration::from_millis(1));
    }
    work.done.lock().unwrap().clone()
}

#[test]
fn short_jobs_of_a_batch_share_few_attached_turns() {
    let (pool, work) = pool(8);
    thread::sleep(Duration::from_millis(50));
    pool.submit(&mut (100..200).map(|number| (number, None)).collect());
    assert_eq!(wait_for(&work, 100).len(), 100);
    assert!(work.attaches.load(Ordering::SeqCst) <= 3, "{:?}", work.attaches);
    assert_eq!(pool.stop(Duration::from_secs(5)), 0);
}

#[test]
fn jobs_that_wait_run_side_by_side() {
    let (pool, work) = pool(8);
    let begun = Instant::now();
    pool.submit(&mut (0..8).map(|number| (number, Some(Duration::from_millis(200)))).collect());
    wait_for(&work, 8);
    assert!(begun.elapsed() < Duration::from_millis(900), "{:?}", begun.elapsed());
}

#[test]
fn a_panic_ends_neither_its_thread_nor_the_batch() {
    let (pool, work) = pool(1);
    pool.submit(&mut (10..20).map(|number| (number, None)).collect());
    assert_eq!(wait_for(&work, 9), [10, 11, 12, 14, 15, 16, 17, 18, 19]);
    assert_eq!(work.panics.load(Ordering::SeqCst), 1);
    assert_eq!(pool.stop(Duration::from_secs(5)), 0);
}

#[test]
fn work_submitted_before_the_threads_is_run() {
    let pool = Pool::new();
    pool.submit(&mut vec![(1, None), (2, None)]);
    let work = Arc::new(Fake::default());
    pool.start(2, &work).unwrap();
    wait_for(&work, 2);
    assert_eq!(pool.stop(Duration::from_secs(5)), 0);
}

#[test]
fn stop_waits_no_longer_than_told() {
    let (pool, work) = pool(2);
    pool.submit(&mut vec![(1, Some(Duration::from_millis(500)))]);
    thread::sleep(Duration::from_millis(100));
    assert_eq!(pool.stop(Duration::from_millis(50)), 1);
    wait_for(&work, 1);
}

#[test]
fn many_small_batches_lose_nothing() {
    let (pool, work) = pool(4);
    for number in 0..5000 {
        pool.submit(&mut vec![(number + 100, None)]);
        if number % 7 == 0 {
            thread::yield_now();
        }
    }
    assert_eq!(wait_for(&work, 5000).len(), 5000);
    assert_eq!(pool.stop(Duration::from_secs(5)), 0);
}
