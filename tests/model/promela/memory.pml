/* memory.pml -- shared memory as weak as C11's release and acquire, for the models beside it.
 *
 * Every word keeps all stores it ever got, in the one order that all agree on. Every process has a view: for each word, the
 * oldest store that it may still read. A load picks any store that is not older than the view, so it may be stale; and the
 * next load of another word may see something that is older yet. That is how a missing acquire or release shows.
 *
 *   store_release  the store carries the whole view of its process
 *   store_relaxed  the store carries nothing but itself
 *   load_acquire   takes over the view that the store carries
 *   load_relaxed   takes over nothing
 *   swap           compare-and-swap: succeeds only on the newest store; a failure may have read any. Passes on what the store
 *                  it replaces carried (a release sequence)
 *   fence          atomic_thread_fence(seq_cst): takes over what all earlier fences knew, and leaves what this one knows
 *
 * A cell is plain memory. Whoever touches it must know of the last touch (it happened before), else it is a data race: an
 * assertion. That finds also a look at bytes that comes after the right to look at them was given away.
 *
 * The kernel: futex_wake and futex_wait meet under a lock, so what the waker knew the sleeper knows. A death is told by a mark
 * that carries the whole view of the dead: all its stores are visible to whoever acquires the notice. The kernel's mark is a
 * fully ordered compare-and-swap on every machine, so dying counts as a fence of the dead; bell.pml shows that it has to.
 *
 * Weaker than C11 in one point, never stronger: a fence does nothing for relaxed loads before it and relaxed stores after it.
 * Not modelled: loads that take place after later stores of the same process (a cell's race check stands in for it).
 *
 * To be defined before: WORDS, CELLS, PROCESSES, HISTORY (most stores to a word, the first value included).
 */
#define VIEWS (WORDS + CELLS)

typedef View { byte at[VIEWS] };
typedef Store { byte value; View view };
typedef Word { byte newest; Store store[HISTORY] };

Word word[WORDS];
byte cell[CELLS];
byte touched[CELLS]; /* number of the last touch */
View seen[PROCESSES];
View fences;         /* what all fences know */
View kernel;         /* what the kernel's lock of the futexes knows */

byte i_, pick_; /* 0 between steps */

/* To be used inside of an atomic step. */
inline join(into, from) {
	i_ = 0;
	do
	:: i_ < VIEWS ->
		if
		:: into.at[i_] < from.at[i_] -> into.at[i_] = from.at[i_]
		:: else
		fi;
		i_++
	:: else -> break
	od;
	i_ = 0
}

inline choose(me, w) {
	pick_ = seen[me].at[w];
	do
	:: pick_ < word[w].newest -> pick_++
	:: break
	od
}

/* The order of a store is a parameter of the models' mutants: these are chosen by name with -D. */
inline append(me, w, v) {
#ifdef CUT
	word[w].newest + 1 < HISTORY; /* for mutants that run in circles: longer runs are not looked at */
#else
	assert(word[w].newest + 1 < HISTORY); /* the bound of the model is too small */
#endif
	word[w].newest++;
	word[w].store[word[w].newest].value = v;
	seen[me].at[w] = word[w].newest
}

inline store_release(me, w, v) {
	d_step {
		append(me, w, v);
		join(word[w].store[word[w].newest].view, seen[me])
	}
}

inline store_relaxed(me, w, v) {
	d_step {
		append(me, w, v);
		word[w].store[word[w].newest].view.at[w] = word[w].newest
	}
}

inline load_acquire(me, w, out) {
	atomic {
		choose(me, w);
		d_step {
			out = word[w].store[pick_].value;
			seen[me].at[w] = pick_;
			join(seen[me], word[w].store[pick_].view);
			pick_ = 0
		}
	}
}

inline load_relaxed(me, w, out) {
	atomic {
		choose(me, w);
		d_step {
			out = word[w].store[pick_].value;
			seen[me].at[w] = pick_;
			pick_ = 0
		}
	}
}

/* A successful swap of any order; `acquires` and `releases` say which. */
inline replace(me, w, v, acquires, releases) {
	append(me, w, v);
	join(word[w].store[word[w].newest].view, word[w].store[word[w].newest - 1].view);
	if
	:: acquires -> join(seen[me], word[w].store[word[w].newest - 1].view)
	:: else
	fi;
	if
	:: releases -> join(word[w].store[word[w].newest].view, seen[me])
	:: else -> word[w].store[word[w].newest].view.at[w] = word[w].newest
	fi
}

inline swap_as(me, w, from, to, done, acquires, releases) {
	atomic {
		choose(me, w);
		if
		:: word[w].store[pick_].value == from && word[w].store[word[w].newest].value == from ->
			d_step { replace(me, w, to, acquires, releases); pick_ = 0; done = true }
		:: else ->
			d_step {
				if
				:: word[w].store[pick_].value == from -> pick_ = word[w].newest
				:: else
				fi;
				seen[me].at[w] = pick_;
				pick_ = 0;
				done = false
			}
		fi
	}
}

inline swap(me, w, from, to, done) { swap_as(me, w, from, to, done, true, true) }

inline exchange(me, w, v, old) {
	d_step {
		replace(me, w, v, true, true);
		old = word[w].store[word[w].newest - 1].value
	}
}

inline fence(me) {
	d_step {
		join(seen[me], fences);
		join(fences, seen[me])
	}
}

/* The kernel ends the process; the notice itself is the model's. */
inline die(me) { fence(me) }

inline touch(me, c) {
	assert(seen[me].at[WORDS + c] == touched[c]); /* a data race */
	touched[c]++;
	seen[me].at[WORDS + c] = touched[c]
}

inline cell_write(me, c, v) { d_step { touch(me, c); cell[c] = v } }
inline cell_read(me, c, out) { d_step { touch(me, c); out = cell[c] } }

/* Blocks until there is a store that the process has not seen: it would look again and again until then. */
#define NEWS(me, w) (word[w].newest > seen[me].at[w])

/* The value that stands in a word when all is at rest. */
#define FINAL(w) word[w].store[word[w].newest].value
