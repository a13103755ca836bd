# frozen_string_literal: true

# Kernel program for Ruby: `ruby <this file> FD`, FD being the socket to the agent. See: docs/kernels.md.
#
# What a cell prints goes straight to descriptor 1, which the agent reads; frames carry the rest.

require "json"
require "socket"

# One context: its binding, its counter, its variables.
module ClocheKernel
  LARGEST_FRAME = 32 << 20
  REPEAT_S = 0.5

  class << self
    def serve(descriptor)
      @socket = Socket.for_fd(descriptor)
      @socket.close_on_exec = true
      @pid = Process.pid
      @count = 0
      settings = receive or exit!(0)
      return unless settle(settings)

      say(type: "ready", version: RUBY_VERSION, pid: @pid)
      while (request = receive)
        execute(request)
      end
      exit!(0)
    end

    private

    def settle(settings)
      $stdout.sync = $stderr.sync = true
      Process.setrlimit(:CORE, 0, Process.getrlimit(:CORE)[1])
      @env = settings["env"]
      ENV.replace(@env)
      begin
        Dir.chdir(File.expand_path(settings["cwd"]))
      rescue SystemCallError => e
        say(type: "failed", kind: "cwd", message: "#{settings["cwd"]}: #{e.message}")
        return false
      end
      trap("INT") { interrupt }
      true
    end

    # The agent repeats the signal; one is enough for a while. Between cells it hits nobody.
    def interrupt
      now = Process.clock_gettime(Process::CLOCK_MONOTONIC)
      return if !@running || now - (@interrupted_at || 0) < REPEAT_S

      @interrupted_at = now
      raise Interrupt, "the cell was interrupted"
    end

    def execute(request)
      @count += 1
      say(type: "started", id: request["id"], count: @count)
      srand if request["renew"]
      follow(request["env"]) if request["env"]
      before = request["env_vars"].to_h { |name, _| [name, ENV[name]] }
      ENV.update(request["env_vars"])
      run(request["code"])
      ENV.update(before)
      $stdout.flush
      $stderr.flush
      say(type: "done", id: request["id"])
    end

    def run(code)
      @interrupted_at = nil
      @running = true
      value = TOPLEVEL_BINDING.eval(code, "cell #{@count}", 1)
      @running = false
      exit!(0) if Process.pid != @pid # a cell has forked, and this is the child at its end
      show(value) unless value.nil?
    rescue Exception => e # rubocop:disable Lint/RescueException -- whatever a cell does, the kernel goes on
      @running = false
      exit!(e.is_a?(SystemExit) ? e.status : 1) if Process.pid != @pid
      fail_with(e)
    end

    def show(value)
      text = value.inspect
      say(type: "result", main: true, bundle: { "text/plain" => text })
    end

    def fail_with(error)
      lines = (error.backtrace || []).take_while { |line| !line.start_with?(__FILE__) }
      message = error.message.to_s
      trace = ["#{error.class}: #{message}", *lines.map { |line| "\tfrom #{line}" }].join("\n")
      say(type: "error", name: error.class.name || error.class.inspect, value: clean(message), traceback: clean(trace))
    end

    # The sandbox's own variables have changed: follow, and leave those of the cells alone.
    def follow(env)
      (@env.keys - env.keys).each { |name| ENV.delete(name) }
      env.each { |name, value| ENV[name] = value if @env[name] != value }
      @env = env
    end

    def say(message)
      body = JSON.generate(message)
      if body.bytesize > LARGEST_FRAME
        warn "a #{message[:type]} left out: larger than #{LARGEST_FRAME >> 20} MiB"
        return
      end
      @socket.write([body.bytesize].pack("N") + body)
    rescue JSON::GeneratorError
      message = message.transform_values { |part| part.is_a?(Hash) ? part.transform_values { |text| clean(text) } : part }
      retry
    end

    def clean(text)
      text.dup.force_encoding(Encoding::UTF_8).scrub
    end

    def receive
      head = @socket.read(4)
      return nil if head.nil? || head.bytesize < 4

      body = @socket.read(head.unpack1("N"))
      body && JSON.parse(body)
    end
  end
end

ClocheKernel.serve(Integer(ARGV.shift))
