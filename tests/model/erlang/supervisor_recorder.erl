%% Plays scripted failures on real supervisors and writes down what happened: one line of JSON for each case.
%%
%% One scheduler (+S 1:1) makes the order of events a fact: a process that ends has told everybody before anybody else runs.
%% The recorder is a process of its own; the start of every leaf asks it (it knows which starts are to fail), it
%% watches every leaf, and supervisors' reports reach it from within the supervisor.
-module(supervisor_recorder).
-export([main/2, start_leaf/1, start_dynamic/2, start_supervisor/1, init/1, log/2, leaf/2]).

main(From, To) ->
    {ok, Cases} = file:consult(From),
    {ok, Out} = file:open(To, [write]),
    logger:remove_handler(default),
    ok = logger:add_handler(recorder, ?MODULE, #{}),
    process_flag(trap_exit, true),
    [ok = file:write(Out, [json(play(Case)), $\n]) || Case <- Cases],
    ok = file:close(Out),
    halt(0).

play(#{tree := Tree, fails := Fails, steps := Steps}) ->
    ets:new(pids, [named_table, public]),
    register(recorder, spawn_link(fun() -> record([], #{}) end)),
    ask({fails, Fails}),
    First = case start_supervisor(Tree) of
                {ok, Pid} -> ets:insert(pids, {top, Pid}), ok;
                {error, Reason} -> {error, Reason}
            end,
    Heard = [heard(First, Tree) | [heard(step(Step), Tree) || Step <- Steps]],
    case alive(maps:get(id, Tree)) of
        false -> ok;
        Top -> exit(Top, kill), await_gone(Top)
    end,
    [begin exit(P, kill), await_gone(P) end || {_, P} <- ets:tab2list(pids), is_process_alive(P)],
    Recorder = whereis(recorder),
    unlink(Recorder), exit(Recorder, kill), await_gone(Recorder),
    ets:delete(pids),
    flush(),
    Heard.

heard(Answer, Tree) ->
    quiet(),
    [Answer, ask(take), survivors(maps:get(id, Tree))].

%% ------------------------------------------------------------------ steps

step({exit, Id, Reason, Fails}) ->
    ask({fails, Fails}),
    finish(Id, Reason);
step({burst, Super, Ends, Fails}) ->
    ask({fails, Fails}),
    case alive(Super) of
        false -> gone;
        Pid ->
            erlang:suspend_process(Pid),
            [finish(Id, Reason) || {Id, Reason} <- Ends],
            erlang:resume_process(Pid),
            ok
    end;
step({stop, Super, Reason, Fails}) ->
    ask({fails, Fails}),
    case alive(Super) of
        false -> gone;
        Pid -> catch gen_server:stop(Pid, Reason, infinity), ok
    end;
step({ask, Super, Verb, What, Fails}) ->
    ask({fails, Fails}),
    case alive(Super) of
        false -> gone;
        Pid -> short(catch request(Pid, Verb, What))
    end.

request(Pid, start_child, Spec) -> supervisor:start_child(Pid, child(Spec));
request(Pid, start_dynamic, {Id, Ending}) -> supervisor:start_child(Pid, [Id, Ending]);
request(Pid, terminate_dynamic, Id) ->
    case alive(Id) of false -> gone; Child -> supervisor:terminate_child(Pid, Child) end;
request(Pid, count_children, _) -> [N || {_, N} <- supervisor:count_children(Pid)];
request(Pid, Verb, Id) -> supervisor:Verb(Pid, Id).

short({ok, Pid}) when is_pid(Pid) -> ok;
short({ok, undefined}) -> undefined;
short({error, {already_started, _}}) -> {error, already_started};
short({error, {Reason, Child}}) when element(1, Child) =:= child -> {error, Reason};
short({'EXIT', _}) -> gone;
short(Other) -> Other.

finish(Id, Reason) ->
    case alive(Id) of
        false -> gone;
        Pid ->
            case Reason of
                killed -> exit(Pid, kill);
                _ -> Pid ! {finish, Reason}
            end,
            await_gone(Pid),
            ok
    end.

await_gone(Pid) ->
    Mon = monitor(process, Pid),
    receive {'DOWN', Mon, process, Pid, _} -> ok end.

alive(Id) ->
    case ets:lookup(pids, Id) of
        [{_, Pid}] -> is_process_alive(Pid) andalso Pid;
        [] -> false
    end.

flush() -> receive _ -> flush() after 0 -> ok end.

%% Nothing happens any more: every supervisor that lives waits in its main loop with nothing in its mailbox.
quiet() ->
    case still() andalso (begin erlang:yield(), still() end) of
        true -> ok;
        false -> receive after 1 -> ok end, quiet()
    end.

still() ->
    lists:all(
      fun({{super, _}, Pid}) ->
              case process_info(Pid, [status, message_queue_len, current_function]) of
                  undefined -> true;
                  [{status, waiting}, {message_queue_len, 0}, {current_function, {gen_server, loop, _}}] -> true;
                  _ -> false
              end;
         (_) -> true
      end, ets:tab2list(pids)).

%% Every living supervisor with the state of its children, newest first.
survivors(Id) ->
    case alive(Id) of
        false -> [];
        Pid ->
            Rows = supervisor:which_children(Pid),
            [[Id | rows(Rows)] | lists:append([survivors(Child) || {Child, P, supervisor, _} <- Rows, is_pid(P)])]
    end.

rows([{undefined, _, _, _} | _] = Rows) -> lists:sort([row(named(Pid), Pid) || {_, Pid, _, _} <- Rows]);
rows(Rows) -> [row(Id, Pid) || {Id, Pid, _, _} <- Rows].

row(Id, Pid) when is_pid(Pid) -> list_to_binary([atom_to_list(Id), $+]);
row(Id, undefined) -> list_to_binary([atom_to_list(Id), $-]);
row(Id, restarting) -> list_to_binary([atom_to_list(Id), $~]).

named(Pid) when is_pid(Pid) -> hd([Id || {Id, P} <- ets:tab2list(pids), is_atom(Id), P =:= Pid]);
named(_) -> unknown.

%% ------------------------------------------------------------------ supervisors and leaves

start_supervisor(Tree) -> supervisor:start_link(?MODULE, Tree).

init(#{id := Id, strategy := dynamic, intensity := Intensity, template := Child}) ->
    claim(Id),
    {ok, {#{strategy => simple_one_for_one, intensity => Intensity, period => 1000},
          [(child(Child))#{start => {?MODULE, start_dynamic, []}}]}};
init(#{id := Id, strategy := Strategy, intensity := Intensity, auto := Auto, children := Children}) ->
    claim(Id),
    {ok, {#{strategy => Strategy, intensity => Intensity, period => 1000, auto_shutdown => Auto},
          [child(Child) || Child <- Children]}}.

claim(Id) -> ets:insert(pids, [{Id, self()}, {{super, Id}, self()}]).

child(#{id := Id, restart := Restart, significant := Significant, sup := Tree}) ->
    #{id => Id, restart => Restart, significant => Significant, type => supervisor, shutdown => infinity,
      start => {?MODULE, start_supervisor, [Tree]}};
child(#{id := Id, restart := Restart, significant := Significant, shutdown := Shutdown} = Leaf) ->
    #{id => Id, restart => Restart, significant => Significant, shutdown => Shutdown,
      start => {?MODULE, start_leaf, [Leaf]}}.

start_dynamic(Id, Ending) -> start_leaf(#{id => Id, ending => Ending}).

start_leaf(#{id := Id, ending := Ending}) ->
    case ask({start, Id}) of
        ok ->
            {ok, Pid} = proc_lib:start_link(?MODULE, leaf, [self(), Ending]),
            ets:insert(pids, {Id, Pid}),
            ask({watch, Id, Pid}),
            {ok, Pid};
        ignore -> ignore;
        Reason -> {error, Reason}
    end.

leaf(Parent, Ending) ->
    process_flag(trap_exit, Ending =/= obey),
    proc_lib:init_ack(Parent, {ok, self()}),
    wait(Ending).

wait(Ending) ->
    receive
        {finish, Reason} -> exit(Reason);
        {'EXIT', _, _} when Ending =/= ignore -> exit(Ending);
        _ -> wait(Ending)
    end.

%% ------------------------------------------------------------------ the recorder

log(#{msg := {report, #{label := {supervisor, Context}, report := Report}}}, _) when Context =/= progress ->
    Name = case [Id || {{super, Id}, Pid} <- ets:tab2list(pids), Pid =:= self()] of [Id] -> Id; [] -> unknown end,
    Offender = proplists:get_value(offender, Report),
    ask({event, [report, Context, Name, proplists:get_value(id, Offender), proplists:get_value(reason, Report)]}),
    ok;
log(_, _) -> ok.

ask(What) ->
    Mon = monitor(process, recorder),
    recorder ! {self(), Mon, What},
    receive
        {Mon, Answer} -> demonitor(Mon, [flush]), Answer;
        {'DOWN', Mon, process, _, _} -> gone
    end.

record(Events, Fails) ->
    receive
        {From, Ref, {start, Id}} ->
            {Result, Left} = case maps:get(Id, Fails, []) of [] -> {ok, []}; [One | More] -> {One, More} end,
            From ! {Ref, Result},
            Ended = [[down, Id, Result] || Result =/= ok],
            record(Ended ++ [[start, Id] | Events], Fails#{Id => Left});
        {From, Ref, {watch, Id, Pid}} ->
            put(monitor(process, Pid), Id),
            From ! {Ref, ok},
            record(Events, Fails);
        {From, Ref, {event, Event}} ->
            From ! {Ref, ok},
            record([Event | Events], Fails);
        {From, Ref, {fails, More}} ->
            From ! {Ref, ok},
            record(Events, maps:merge(Fails, More));
        {From, Ref, take} ->
            From ! {Ref, lists:reverse(Events)},
            record([], Fails);
        {'DOWN', Mon, process, _, Reason} ->
            record([[down, erase(Mon), Reason] | Events], Fails)
    end.

%% ------------------------------------------------------------------ JSON of plain terms

json(Term) when is_atom(Term) -> [$", atom_to_list(Term), $"];
json(Term) when is_binary(Term) -> [$", Term, $"];
json(Term) when is_integer(Term) -> integer_to_list(Term);
json(Term) when is_tuple(Term) -> json(tuple_to_list(Term));
json(Term) when is_list(Term) -> [$[, lists:join($,, [json(One) || One <- Term]), $]];
json(Term) when is_pid(Term) -> "\"pid\"";
json(Term) when is_map(Term) -> "\"map\"".
