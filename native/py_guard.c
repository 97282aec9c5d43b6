/* py_guard.c -- what guard objects have in common: see py_guard.h. */
#include "py_guard.h"

#include "py_message.h"

uint64_t shmrt_py_guards_epoch = 1;

static PyObject *place_function; /* asked for the area that this process belongs to now; NULL until somebody has told */

/* ---- joining ------------------------------------------------------------------------------------ */

static struct shmrt_guard_plan plan_of(const GuardObject *self) {
	Py_ssize_t name_size = 0, text_size = 0;
	const char *name = PyUnicode_AsUTF8AndSize(self->name, &name_size);
	const char *text = PyUnicode_AsUTF8AndSize(self->text, &text_size);
	return (struct shmrt_guard_plan){.kind = self->kind->kind,
					 .name = name,
					 .text = text,
					 .name_size = (size_t)name_size,
					 .text_size = (size_t)text_size,
					 .body_bytes = self->body_bytes,
					 .fill = self->kind->fill,
					 .settings = &self->settings};
}

/* The entry of this process alone. It stays where it is as long as the object does: threads may sleep on it. */
static int make_own(GuardObject *self) {
	uint64_t bytes = shmrt_guard_bytes(self->body_bytes);
	struct shmrt_guard_plan plan = plan_of(self);
	if (self->own == NULL)
		self->own = aligned_alloc(SHMRT_LINE, bytes);
	if (self->own == NULL) {
		PyErr_NoMemory();
		return -1;
	}
	memset((void *)self->own, 0, bytes);
	if (shmrt_guard_format(self->own, &plan) != SHMRT_OK) {
		PyErr_SetFromErrno(PyExc_OSError);
		return -1;
	}
	self->owner = shmrt_owner_self();
	return 0;
}

/* What `from` knows goes on in the entry of this process alone. */
static int carry_home(GuardObject *self, const struct shmrt_guard *from) {
	uint64_t counts[SHMRT_GUARD_COUNTERS];
	for (int i = 0; i < SHMRT_GUARD_COUNTERS; i++)
		counts[i] = atomic_load_explicit(&from->counters[i], memory_order_relaxed); /* a count by itself */
	if (self->owner != shmrt_owner_self()) { /* forked: one thread, and a mutex that another may have held */
		struct shmrt_guard *inherited = from == self->own ? self->own : NULL;
		if (inherited != NULL)
			self->own = NULL;
		if (make_own(self) < 0) {
			if (inherited != NULL)
				self->own = inherited;
			return -1;
		}
		self->kind->carry(self->own, from, false);
		free(inherited);
	} else {
		self->kind->carry(self->own, from, false);
	}
	for (int i = 0; i < SHMRT_GUARD_COUNTERS; i++)
		atomic_store_explicit(&self->own->counters[i], counts[i], memory_order_relaxed); /* a count by itself */
	return 0;
}

/* What is in shared memory stays there for the others; this object takes along what it says. */
static int go_home(GuardObject *self) {
	AreaObject *area = self->area;
	if (area == NULL && self->owner == shmrt_owner_self())
		return 0;
	int outcome = carry_home(self, self->guard);
	if (outcome == 0) {
		self->guard = self->own;
		self->area = NULL;
		Py_XDECREF(area);
	}
	return outcome;
}

static int refuse(const GuardObject *self, int outcome, const struct shmrt_guard *found, const struct shmrt_shortage *shortage) {
	if (outcome == SHMRT_FOREIGN) {
		Py_ssize_t size = found->text_size <= SHMRT_GUARD_TEXT_BYTES_MAX ? (Py_ssize_t)found->text_size : 0;
		PyObject *theirs = PyUnicode_DecodeUTF8((const char *)found->text, size, "replace");
		if (theirs != NULL)
			shmrt_raise("ConfigError", "the runtime has a %s named %R with other settings: there (%U), here (%U); give both the "
						   "same settings, or one of them another name",
				    self->kind->word, self->name, theirs, self->text);
		Py_XDECREF(theirs);
	} else if (outcome == SHMRT_NO_SPACE && shortage->needed == 0) {
		shmrt_raise_overloaded(SHMRT_GUARD_AREA_BYTES, "guards", "the %d MiB for breakers, bulkheads and rate limits of this runtime are "
									"full; %s %R finds no room: use fewer names, or smaller windows",
				       (int)(SHMRT_GUARD_AREA_BYTES >> 20), self->kind->word, self->name);
	} else if (outcome == SHMRT_NO_SPACE) {
		shmrt_raise_shortage(shortage);
	} else if (outcome == SHMRT_INTERRUPTED) {
		shmrt_raise("RuntimeDown", "%s %R cannot be joined to its runtime: a process that is making another one there is stopped",
			    self->kind->word, self->name);
	} else if (outcome == SHMRT_SYSTEM) {
		PyErr_SetFromErrno(PyExc_OSError);
	} else {
		shmrt_raise("SegmentError", "corrupt shared memory: %s %R has numbers that shmrt does not write", self->kind->word, self->name);
	}
	return -1;
}

static int join_area(GuardObject *self, AreaObject *area) {
	struct shmrt_guard_plan plan = plan_of(self);
	struct shmrt_shortage shortage = {0};
	struct shmrt_guard *found = NULL;
	bool made = false;
	int outcome = shmrt_guard_join(&area->area, &plan, &found, &made, &shortage);
	if (outcome == SHMRT_OK && !self->kind->is_sound(found))
		outcome = SHMRT_CORRUPT;
	if (outcome != SHMRT_OK)
		return refuse(self, outcome, found, &shortage);
	self->kind->carry(found, self->own, true);
	self->guard = found;
	self->area = (AreaObject *)Py_NewRef(area);
	return 0;
}

int shmrt_py_guard_is_made(const GuardObject *self) {
	if (SHMRT_LIKELY(self->own != NULL))
		return 0;
	PyErr_Format(PyExc_RuntimeError, "this %.50s was not made by its constructor", Py_TYPE(self)->tp_name);
	return -1;
}

int shmrt_py_guard_join(GuardObject *self) {
	uint64_t epoch = shmrt_py_guards_epoch; /* before the question: what moves meanwhile is seen next time */
	if (shmrt_py_guard_is_made(self) < 0)
		return -1;
	PyObject *place = place_function ? PyObject_CallNoArgs(place_function) : Py_NewRef(Py_None);
	if (place == NULL)
		return -1;
	int outcome = 0;
	if (place != (PyObject *)self->area || self->owner != shmrt_owner_self()) {
		outcome = go_home(self);
		if (outcome == 0 && place != Py_None)
			outcome = Py_TYPE(place) == shmrt_py_area_type ? join_area(self, (AreaObject *)place) : -1;
		if (outcome < 0 && !PyErr_Occurred())
			PyErr_SetString(PyExc_TypeError, "a place is a GuardArea or None");
	}
	Py_DECREF(place);
	if (outcome == 0)
		self->epoch = epoch;
	return outcome;
}

PyObject *shmrt_py_guard_leave(GuardObject *self, PyObject *area) {
	if (self->area == NULL || (PyObject *)self->area != area)
		Py_RETURN_NONE;
	if (go_home(self) < 0)
		return NULL;
	self->epoch = 0;
	Py_RETURN_NONE;
}

/* ---- life --------------------------------------------------------------------------------------- */

int shmrt_py_guard_set_up(GuardObject *self, const struct shmrt_py_guard_kind *kind, uint64_t body_bytes, PyObject *name, PyObject *text,
			  PyObject *clock) {
	Py_ssize_t name_size, text_size;
	if (self->own != NULL) {
		PyErr_Format(PyExc_RuntimeError, "a %s is set up once", kind->word);
		return -1;
	}
	if (PyUnicode_AsUTF8AndSize(name, &name_size) == NULL || PyUnicode_AsUTF8AndSize(text, &text_size) == NULL)
		return -1;
	if (name_size < 1 || name_size > SHMRT_GUARD_NAME_BYTES_MAX || text_size > SHMRT_GUARD_TEXT_BYTES_MAX) {
		PyErr_Format(PyExc_ValueError, "the name of a %s has 1 to %d bytes and its settings at most %d, not %zd and %zd", kind->word,
			     SHMRT_GUARD_NAME_BYTES_MAX, SHMRT_GUARD_TEXT_BYTES_MAX, name_size, text_size);
		return -1;
	}
	self->kind = kind;
	self->body_bytes = body_bytes;
	self->name = Py_NewRef(name);
	self->text = Py_NewRef(text);
	self->clock = clock == Py_None ? NULL : Py_NewRef(clock);
	if (make_own(self) < 0)
		return -1;
	self->guard = self->own;
	return 0;
}

void shmrt_py_guard_release(GuardObject *self) {
	if (self->weakrefs != NULL)
		PyObject_ClearWeakRefs((PyObject *)self);
	Py_CLEAR(self->area);
	Py_CLEAR(self->name);
	Py_CLEAR(self->text);
	Py_CLEAR(self->clock);
	free(self->own);
	self->own = self->guard = NULL;
}

int shmrt_py_guard_visit(GuardObject *self, visitproc visit, void *arg) {
	Py_VISIT(Py_TYPE(self));
	Py_VISIT(self->clock);
	return 0;
}

/* ---- use ---------------------------------------------------------------------------------------- */

struct shmrt_holder shmrt_py_guard_holder(const GuardObject *self) {
	struct shmrt_holder holder = {.owner = shmrt_owner_self(), .slot = SHMRT_GUARD_NO_SLOT};
	if (self->area != NULL)
		holder.slot = self->area->area.slot;
	return holder;
}

int shmrt_py_guard_now(const GuardObject *self, uint64_t *now_ns) {
	if (SHMRT_LIKELY(self->clock == NULL)) {
		*now_ns = shmrt_now_ns();
		return 0;
	}
	PyObject *seconds = PyObject_CallNoArgs(self->clock);
	double value = seconds ? PyFloat_AsDouble(seconds) : -1.0;
	Py_XDECREF(seconds);
	if (!(value >= 0.0 && value <= 9e9)) { /* nor is it NaN */
		if (!PyErr_Occurred())
			PyErr_SetString(PyExc_ValueError, "a clock gives seconds, from 0 on");
		return -1;
	}
	*now_ns = (uint64_t)(value * 1e9 + 0.5);
	return 0;
}

int shmrt_py_guard_again(GuardObject *self, int outcome) {
	if (outcome == SHMRT_INTERRUPTED)
		return PyErr_CheckSignals();
	shmrt_raise("SegmentError", "corrupt shared memory: %s %R has words that shmrt does not write (%d)", self->kind->word, self->name, outcome);
	return -1;
}

PyObject *shmrt_py_guard_counters(GuardObject *self, void *unused) {
	(void)unused;
	if (shmrt_py_guard_enter(self) < 0)
		return NULL;
	PyObject *list = PyList_New(SHMRT_GUARD_COUNTERS);
	for (int i = 0; list != NULL && i < SHMRT_GUARD_COUNTERS; i++) {
		uint64_t count = atomic_load_explicit(&self->guard->counters[i], memory_order_relaxed); /* a count by itself */
		PyObject *number = PyLong_FromUnsignedLongLong(count);
		if (number == NULL)
			Py_CLEAR(list);
		else
			PyList_SET_ITEM(list, i, number);
	}
	return list;
}

PyObject *shmrt_py_guard_overload(GuardObject *self, PyObject *unused) {
	(void)unused;
	/* It joins nothing: this is asked of objects that nobody uses any more. Outside a runtime there is nobody to tell. */
	if (self->area == NULL || self->epoch != shmrt_py_guards_epoch)
		Py_RETURN_NONE;
	uint64_t since = shmrt_guard_take_report(self->guard, self->kind->refusals, shmrt_now_ns());
	if (since != 0)
		return PyLong_FromUnsignedLongLong(since);
	return shmrt_guard_has_news(self->guard, self->kind->refusals) ? Py_NewRef(Py_True) : Py_NewRef(Py_None);
}

PyObject *shmrt_py_guard_name(GuardObject *self, void *unused) {
	(void)unused;
	return Py_NewRef(self->name ? self->name : Py_None);
}
PyObject *shmrt_py_guard_text(GuardObject *self, void *unused) {
	(void)unused;
	return Py_NewRef(self->text ? self->text : Py_None);
}
PyObject *shmrt_py_guard_is_shared(GuardObject *self, void *unused) {
	(void)unused;
	return shmrt_py_guard_enter(self) < 0 ? NULL : PyBool_FromLong(self->area != NULL);
}

/* ---- the module's part -------------------------------------------------------------------------- */

static PyObject *guards_moved(PyObject *module, PyObject *unused) {
	(void)module, (void)unused;
	shmrt_py_guards_epoch++;
	Py_RETURN_NONE;
}

static PyObject *guards_ask(PyObject *module, PyObject *function) {
	(void)module;
	if (!PyCallable_Check(function))
		return PyErr_Format(PyExc_TypeError, "a callable, not %R", function);
	Py_XSETREF(place_function, Py_NewRef(function));
	shmrt_py_guards_epoch++;
	Py_RETURN_NONE;
}

static void in_forked_child(void) { shmrt_py_guards_epoch++; }

static PyMethodDef functions[] = {
	{"guards_moved", guards_moved, METH_NOARGS, "Every guard asks again which runtime it belongs to."},
	{"guards_ask", guards_ask, METH_O, "guards_ask(function): what they ask; it returns a GuardArea or None"},
	{NULL, NULL, 0, NULL},
};

int shmrt_py_add_guard_functions(PyObject *module) {
	static bool registered;
	if (!registered && pthread_atfork(NULL, NULL, in_forked_child) != 0) {
		PyErr_NoMemory();
		return -1;
	}
	registered = true;
	return PyModule_AddFunctions(module, functions);
}
